// The piano roll: a song's notes over time, coloured by part; drums have a lane of their own below.

import { pen } from "./canvas.js";
import { partTone } from "./colour.js";

/** @typedef {import("./score.js").View} View */

const RULER = 18; // height of the times on top, px
const STRIPE = 5; // height of a drum's row, px
const GAP = 8; // around the drums' rows, px
const LANE = 0.3; // of the height, that drums take at most; alone they take all
const FEWEST = 14; // pitches that are shown
const TICKS_S = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300];
const TICK_GAP = 64; // px between ticks at least
const LABEL = 40; // px that a tick's time needs
const STROKE_S = 0.05; // length of a drum's stroke, as drawn

/** A song on a canvas. */
export class Roll {
  #canvas;
  #song = /** @type {import("./api.js").Song} */ ({ seconds: 0, parts: [], notes: [], mended: [] });
  #drums = /** @type {number[]} */ ([]); // keys that are struck, one a row
  #low = 0; // pitches that are shown
  #high = FEWEST;
  #isDrummed = false; // and nothing else
  /** Whether each part is heard. */
  heard = /** @type {boolean[]} */ ([]);

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.#canvas = canvas;
  }

  /** @param {import("./api.js").Song} song */
  set song(song) {
    const pitches = (isDrum) => {
      const played = song.notes.filter(([, , , part]) => song.parts[part].is_drum === isDrum);
      return [...new Set(played.map(([, , pitch]) => pitch))].sort((a, b) => a - b);
    };
    const [first = 60, last = 60] = [pitches(false)[0], pitches(false).at(-1)];
    const spare = Math.max(FEWEST - (last - first), 4) / 2;
    this.#song = song;
    this.#isDrummed = !pitches(false).length;
    this.#drums = pitches(true);
    this.#low = Math.floor(first - spare);
    this.#high = Math.ceil(last + spare);
    this.#canvas.setAttribute("aria-label", `Piano roll: ${song.notes.length} notes, ${song.parts.length} parts`);
  }

  /**
   * @param {View} view
   * @param {number} seconds length of the song; 0 while there is none
   */
  draw(view, seconds) {
    const { context, width, height, ink } = pen(this.#canvas);
    if (!seconds) return;
    const grid = this.#grid(height);
    context.textBaseline = "middle";
    if (grid.row) this.#drawKeys(context, view, grid, ink);
    context.fillStyle = ink("--line");
    context.fillRect(0, grid.lane, width, 1);
    drawTimes(context, view, height, ink);
    context.beginPath();
    context.rect(view.gutter, RULER, width, height);
    context.clip();
    const lightness = ink("--part-lightness");
    const colours = this.#song.parts.map((part, index) => `oklch(${lightness} ${partTone(index, part.is_drum)})`);
    this.#drawNotes(context, view, grid, colours);
  }

  /** Heights, px: of a pitch's row, of a drum's, and where the drums' lane begins. */
  #grid(height) {
    const drums = this.#drums.length;
    const share = this.#isDrummed ? 1 : LANE;
    const stripe = Math.min(STRIPE * (this.#isDrummed ? 3 : 1), (share * (height - RULER - GAP)) / drums);
    const lane = drums ? height - drums * stripe - GAP : height;
    return { stripe, lane, row: this.#isDrummed ? 0 : (lane - RULER) / (this.#high - this.#low + 1) };
  }

  #drawKeys(context, view, { row }, ink) {
    context.textAlign = "right";
    for (let pitch = this.#low; pitch <= this.#high; pitch++) {
      const y = RULER + (this.#high - pitch) * row;
      if ([1, 3, 6, 8, 10].includes(pitch % 12)) {
        context.fillStyle = ink("--black-key");
        context.fillRect(view.gutter, y, view.width, row);
      } else if (pitch % 12 === 0) {
        context.fillStyle = ink("--line");
        context.fillRect(view.gutter, y + row, view.width, 1);
        context.fillStyle = ink("--quiet");
        context.fillText(`C${pitch / 12 - 1}`, view.gutter - 7, y + row / 2);
      }
    }
  }

  #drawNotes(context, view, { row, stripe, lane }, colours) {
    const thick = Math.max(row - 1, 2);
    const stroke = Math.min(Math.max(view.x(STROKE_S) - view.x(0), 1.5), 5);
    const rows = new Map(this.#drums.map((key, index) => [key, this.#drums.length - 1 - index]));
    for (const [onset, offset, pitch, part, velocity] of this.#song.notes) {
      const [left, right] = [view.x(onset), view.x(offset)];
      if (left > view.width || right < view.gutter - 4) continue;
      context.globalAlpha = this.heard[part] === false ? 0.13 : 0.5 + velocity / 254;
      context.fillStyle = colours[part];
      context.beginPath();
      if (this.#song.parts[part].is_drum) {
        context.rect(left, lane + GAP / 2 + rows.get(pitch) * stripe, stroke, Math.max(stripe - 1, 1));
      } else {
        const y = RULER + (this.#high - pitch + 0.5) * row;
        context.roundRect(left, y - thick / 2, Math.max(right - left - 1, 2), thick, 1.5);
      }
      context.fill();
    }
  }
}

/** Times on top, and lines down from them. */
function drawTimes(context, view, height, ink) {
  const wanted = (view.span * TICK_GAP) / view.width;
  const tick = TICKS_S.find((seconds) => seconds >= wanted) ?? TICKS_S.at(-1);
  context.textAlign = "left";
  for (let n = Math.ceil(view.start / tick); n * tick < view.start + view.span; n++) {
    const x = Math.round(view.x(n * tick));
    context.fillStyle = ink("--line");
    context.fillRect(x, 0, 1, height);
    context.fillStyle = ink("--quiet");
    if (x + LABEL < view.width) context.fillText(clock(n * tick, tick < 1 ? 1 : 0), x + 5, RULER / 2);
  }
}

/**
 * @param {number} seconds
 * @param {number} [digits] after the point
 * @returns {string} minutes and seconds
 */
export function clock(seconds, digits = 0) {
  const unit = 10 ** digits;
  const whole = Math.floor(seconds * unit + 1e-6) / unit;
  const rest = (whole % 60).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
  return `${Math.floor(whole / 60)}:${rest}`;
}
