// Plays a take by Web Audio while it is being made: pieces of its sound are scheduled end to end, sample by sample.

import { HOP, SAMPLE_RATE } from "./mel.js";

/** @typedef {import("./take.js").Take} Take */
/**
 * What sounds: pieces of a take from one sample on, since a time on the context's clock; and the sample that is next.
 * @typedef {{take: Take, gain: GainNode, sources: Set<AudioBufferSourceNode>, began: number, from: number,
 *   next: number}} Run
 */

const PIECE = SAMPLE_RATE; // samples that are scheduled at once, at most
const AHEAD = 2.5; // seconds that are scheduled ahead: timers of a page in the background are slow
const LEAD = 0.03; // seconds from now on that sound begins: by then it is scheduled
const FADE = 0.02; // seconds from one sound to another
const PERIOD = 50; // milliseconds between looks at the clock

/** A tape of one take. Its states: "paused"; "waiting" for sound to be made; "playing". */
export class Player {
  state = "paused";
  #context = /** @type {AudioContext | null} */ (null);
  #volume = /** @type {GainNode | null} */ (null);
  #loudness = 1;
  #take = /** @type {Take | null} */ (null);
  #run = /** @type {Run | null} */ (null);
  #position = 0; // samples, while nothing sounds
  #timer = 0;
  #changed;

  /** @param {() => void} changed called when the state has changed */
  constructor(changed) {
    this.#changed = changed;
  }

  /** The position in seconds, as it is heard. */
  get position() {
    return (this.#run ? this.#heard() : this.#position) / SAMPLE_RATE;
  }

  /** Whether the browser lets nothing be heard before a key or button is pressed. */
  get isHeldBack() {
    return this.#context?.state === "suspended";
  }

  /** @param {number} loudness 0 to 1, as ears have it */
  set volume(loudness) {
    this.#loudness = loudness;
    this.#volume?.gain.setTargetAtTime(loudness ** 2, this.#context.currentTime, FADE);
  }

  /** Be ready to sound; the browser allows it from the first key, click or drop on. */
  open() {
    if (!this.#context) {
      this.#context = new AudioContext({ sampleRate: SAMPLE_RATE, latencyHint: "interactive" });
      this.#context.onstatechange = this.#changed;
      this.#volume = this.#context.createGain();
      this.#volume.gain.value = this.#loudness ** 2;
      this.#volume.connect(this.#context.destination);
    }
    if (this.isHeldBack) this.#context.resume();
  }

  /**
   * Go on with another take from the same position or another; what sounds goes on until that take has sound.
   * @param {Take} take
   * @param {number} [seconds]
   */
  load(take, seconds) {
    this.#take = take;
    if (seconds !== undefined) {
      this.#stop();
      this.#position = aligned(seconds);
      if (this.state === "playing") this.#become("waiting");
    }
    this.look();
  }

  /** Sound from the position on, or from the start after the end. */
  play() {
    this.open();
    if (this.#take?.length && this.#position >= this.#take.length) this.#position = 0;
    this.#become("waiting");
    this.look();
  }

  /** Be silent and keep the position. */
  pause() {
    this.#stop();
    this.#become("paused");
  }

  /** @param {number} seconds where to go on */
  seek(seconds) {
    this.#stop();
    this.#position = Math.min(Math.max(aligned(seconds), 0), this.#take.length);
    if (this.state !== "paused") this.#become("waiting");
    this.look();
  }

  /** Schedule what can be scheduled by now: to be called when there is new sound; the clock does it by itself. */
  look() {
    if (this.state === "paused" || !this.#take) return;
    if (this.#run && this.#run.take !== this.#take) this.#takeOver();
    if (this.#run && this.#context.currentTime > this.#timeOf(this.#run.next)) this.#runDry();
    if (this.state === "waiting" && this.#take.madeTo(this.#position) > this.#position) {
      this.#begin(this.#position, this.#position > 0 ? FADE : 0);
      this.#become("playing");
    }
    if (this.#run) this.#schedule(this.#run);
  }

  /** From the take that sounds to the one that is due, where that has sound for the moment at which it begins. */
  #takeOver() {
    const { began, from, next } = this.#run;
    const at = from + Math.round((this.#context.currentTime + LEAD - began) * SAMPLE_RATE);
    if (at >= next || this.#take.madeTo(at) === at) return;
    this.#stop(this.#context.currentTime + LEAD);
    this.#begin(at, FADE);
  }

  /** All that was scheduled has sounded. */
  #runDry() {
    const at = this.#run.next;
    this.#stop();
    this.#position = at;
    if (at >= this.#take.length) this.#become("paused");
    else this.#become("waiting");
  }

  #begin(from, fade) {
    const gain = this.#context.createGain();
    gain.connect(this.#volume);
    const began = Math.round((this.#context.currentTime + LEAD) * SAMPLE_RATE) / SAMPLE_RATE;
    if (fade) {
      gain.gain.setValueAtTime(0, began);
      gain.gain.linearRampToValueAtTime(1, began + fade);
    }
    this.#run = { take: this.#take, gain, sources: new Set(), began, from, next: from };
    this.#schedule(this.#run);
  }

  #schedule(run) {
    while (run.take === this.#take && this.#timeOf(run.next) < this.#context.currentTime + AHEAD) {
      const end = Math.min(run.take.madeTo(run.next), run.next + PIECE);
      if (end <= run.next) return;
      const buffer = this.#context.createBuffer(1, end - run.next, SAMPLE_RATE);
      buffer.copyToChannel(run.take.samples.subarray(run.next, end), 0);
      const source = this.#context.createBufferSource();
      source.buffer = buffer;
      source.connect(run.gain);
      source.start(this.#timeOf(run.next));
      source.onended = () => run.sources.delete(source);
      run.sources.add(source);
      run.next = end;
    }
  }

  /** Fade out what sounds, at once or at a time on the context's clock, and keep its position. */
  #stop(at = this.#context?.currentTime) {
    const run = this.#run;
    if (!run) return;
    this.#position = aligned(this.position);
    this.#run = null;
    run.gain.gain.cancelScheduledValues(at);
    run.gain.gain.setTargetAtTime(0, at, FADE / 4);
    for (const source of run.sources) source.stop(at + 2 * FADE);
  }

  /** When a sample of the run sounds, on the context's clock. */
  #timeOf(sample) {
    return (Math.round(this.#run.began * SAMPLE_RATE) + sample - this.#run.from) / SAMPLE_RATE;
  }

  /** The sample that is heard now. */
  #heard() {
    const { began, from, next } = this.#run;
    const delay = this.#context.outputLatency || 0;
    return Math.min(Math.max(from + (this.#context.currentTime - delay - began) * SAMPLE_RATE, from), next);
  }

  #become(state) {
    if (this.state === state) return;
    this.state = state;
    clearInterval(this.#timer);
    if (state !== "paused") this.#timer = setInterval(() => this.look(), PERIOD);
    this.#changed();
  }
}

/** A time in seconds as samples, at the start of a frame. */
function aligned(seconds) {
  return Math.floor((seconds * SAMPLE_RATE) / HOP + 1e-6) * HOP;
}
