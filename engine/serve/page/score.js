// The picture of a song: its piano roll, the spectrogram of what is made of it, and a playhead over both.

import { Roll } from "./roll.js";
import { Spectrum } from "./spectrum.js";

const READABLE = 0.024; // seconds a pixel: a song is shown whole up to this
const SHORTEST_S = 2; // that is shown
const NARROW = 560; // px: below, there is less room at the side
const MARGIN = 0.03; // of the view, that the playhead keeps from its borders

/** What is seen: `span` seconds from `start` on, right of a gutter, px. */
export class View {
  start = 0;
  span = 10;
  width = 0;
  isDark = false;

  get gutter() {
    return this.width < NARROW ? 26 : 34;
  }

  /**
   * @param {number} seconds
   * @returns {number} where that is, px
   */
  x(seconds) {
    return this.gutter + ((seconds - this.start) / this.span) * (this.width - this.gutter);
  }

  /**
   * @param {number} x px
   * @returns {number} the time there, s
   */
  time(x) {
    return this.start + ((x - this.gutter) / (this.width - this.gutter)) * this.span;
  }
}

/** Draws a song and a take of it, and tells where it was clicked. */
export class Score {
  #view = new View();
  #root;
  #roll;
  #spectrum;
  #playhead;
  #seconds = 0;
  #position = 0;
  #drawing = 0; // the next picture, if there is to be one
  #isStale = false; // the roll

  /**
   * @param {HTMLElement} root holds the canvases .roll and .spectrum, and the .playhead
   * @param {(seconds: number) => void} chosen called with a time that was clicked
   */
  constructor(root, chosen) {
    this.#root = root;
    this.#roll = new Roll(root.querySelector(".roll"));
    this.#spectrum = new Spectrum(root.querySelector(".spectrum"));
    this.#playhead = root.querySelector(".playhead");
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const recolour = () => {
      this.#view.isDark = dark.matches;
      this.#spectrum.forget();
      this.#draw();
    };
    dark.addEventListener("change", recolour);
    recolour();
    new ResizeObserver(() => this.#draw()).observe(root);
    root.addEventListener("click", (event) => {
      if (this.#seconds) chosen(Math.min(Math.max(this.#timeOf(event), 0), this.#seconds));
    });
    root.addEventListener("wheel", (event) => this.#onWheel(event), { passive: false });
  }

  /**
   * Show a song; where its length is another than before, as much of it as can be read.
   * @param {import("./api.js").Song} song
   * @param {number} seconds of its sound
   */
  show(song, seconds) {
    this.#roll.song = song;
    if (seconds !== this.#seconds) {
      this.#seconds = seconds;
      this.#view.start = 0;
      this.#view.span = Math.min(seconds, Math.max(10, this.#root.clientWidth * READABLE));
    }
    this.#draw();
  }

  /** @param {boolean[]} heard whether each part is; others are drawn faint */
  set heard(heard) {
    this.#roll.heard = heard;
    this.#draw();
  }

  /** @param {import("./take.js").Take} take whose spectrogram is shown */
  set take(take) {
    this.#spectrum.take = take;
    this.#draw();
  }

  /** There is new sound in the take. */
  made() {
    this.#draw(false);
  }

  /**
   * Move the playhead, and the view with it when it leaves.
   * @param {number} seconds
   * @param {boolean} [follows] whether the view goes along
   */
  showPosition(seconds, follows = false) {
    const { start, span, width, gutter } = this.#view;
    this.#position = seconds;
    if (follows && (seconds < start || seconds > start + span * (1 - MARGIN))) this.#pan(seconds - span * MARGIN);
    const x = this.#view.x(seconds);
    this.#playhead.hidden = !this.#seconds || x < gutter - 1 || x > width;
    this.#playhead.style.transform = `translateX(${x.toFixed(1)}px)`;
  }

  /**
   * Show more or less time at once.
   * @param {number} factor below 1 goes nearer
   * @param {number} [about] a time that stays where it is, s; the playhead's, if it is seen
   */
  zoom(factor, about = this.#position) {
    const view = this.#view;
    const share = Math.min(Math.max((about - view.start) / view.span, 0), 1);
    view.span = Math.min(Math.max(view.span * factor, SHORTEST_S), this.#seconds);
    this.#pan(about - share * view.span);
  }

  #pan(start) {
    const view = this.#view;
    view.start = Math.max(Math.min(start, this.#seconds - view.span), 0);
    this.#draw();
  }

  #timeOf(event) {
    return this.#view.time(event.clientX - this.#root.getBoundingClientRect().left);
  }

  #onWheel(event) {
    const isAcross = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
    if (!this.#seconds || !(event.ctrlKey || isAcross)) return; // the page scrolls
    event.preventDefault();
    if (event.ctrlKey) this.zoom(Math.exp(event.deltaY / 300), this.#timeOf(event));
    else this.#pan(this.#view.start + ((event.deltaX || event.deltaY) / this.#view.width) * this.#view.span);
  }

  /** Draw anew, once before the next picture on the screen: all, or the spectrogram alone. */
  #draw(isAll = true) {
    this.#isStale ||= isAll;
    this.#drawing ||= requestAnimationFrame(() => {
      this.#view.width = this.#root.clientWidth;
      if (this.#isStale) this.#roll.draw(this.#view, this.#seconds);
      this.#spectrum.draw(this.#view);
      this.#drawing = 0;
      this.#isStale = false;
      this.showPosition(this.#position);
    });
  }
}
