// One take of a song: the sound that has been made of it by now, wherever it was begun, and its spectrogram.

import { HOP, MELS, SAMPLE_RATE, WINDOW, logMel } from "./mel.js";

const LOUD = 3.5; // log-mel that is drawn brightest
const QUIET = -3; // and darkest: what is below is hardly heard
const values = new Float32Array(MELS);

/** Sound of a known length that comes in pieces, in any order. Times are in samples. */
export class Take {
  /** Samples in all; 0 while nobody has said it yet. */
  length = 0;
  /** The sound [length]; silence where there is none yet. */
  samples = new Float32Array(0);
  /** Loudness of each frame's mels, 0 to 255: [frames * MELS]. */
  mel = new Uint8ClampedArray(0);
  /** Made stretches [from, to), in order and apart. */
  #spans = /** @type {number[][]} */ ([]);
  #fresh = /** @type {number[][]} */ ([]); // frames without their mels as yet

  /**
   * Say how long the song is; it never gets shorter.
   * @param {number} seconds
   */
  reach(seconds) {
    const length = Math.ceil(seconds * SAMPLE_RATE - 1e-3);
    if (length <= this.length) return;
    this.length = length;
    const [samples, mel] = [this.samples, this.mel];
    this.samples = new Float32Array(length);
    this.samples.set(samples);
    this.mel = new Uint8ClampedArray(Math.ceil(length / HOP) * MELS);
    this.mel.set(mel);
  }

  /**
   * Put sound in its place, as far as the song reaches.
   * @param {number} at its first sample
   * @param {Int16Array} sound
   */
  write(at, sound) {
    const count = Math.min(sound.length, this.length - at);
    for (let n = 0; n < count; n++) this.samples[at + n] = sound[n] / 32768;
    this.leave(at, at + count);
  }

  /**
   * Count a stretch [from, to) as made with what is in it: its sound, or silence.
   * @param {number} from
   * @param {number} to
   */
  leave(from, to) {
    if (to <= from) return;
    const isApart = ([start, end]) => end < from || start > to;
    const joined = [[from, to], ...this.#spans.filter((span) => !isApart(span))];
    const span = [Math.min(...joined.map(([start]) => start)), Math.max(...joined.map(([, end]) => end))];
    this.#spans = [...this.#spans.filter(isApart), span].sort((a, b) => a[0] - b[0]);
    const first = Math.ceil(Math.max(span[0], from - WINDOW) / HOP);
    const end = span[1] >= this.length ? span[1] + WINDOW - HOP : Math.min(span[1], to + WINDOW); // of whole frames
    this.#fresh.push([first, Math.max(first, Math.floor((end - WINDOW) / HOP) + 1)]);
  }

  /** @returns {number[][]} frames [from, to) whose mels are new since this was asked last, and are there now */
  analyse() {
    const fresh = this.#fresh;
    this.#fresh = [];
    for (const [from, to] of fresh) for (let frame = from; frame < to; frame++) this.#analyse(frame);
    return fresh;
  }

  /**
   * @param {number} at
   * @returns {number} to where the sound from here on is made; `at` where none is
   */
  madeTo(at) {
    return this.#spans.find(([from, to]) => from <= at && at < to)?.[1] ?? at;
  }

  /**
   * @param {number} at
   * @returns {number[] | null} the first stretch [from, to) from here on that is not made
   */
  gap(at) {
    const from = this.madeTo(at);
    if (this.length && from >= this.length) return null;
    return [from, this.#spans.find(([start]) => start > from)?.[0] ?? (this.length || Infinity)];
  }

  /** @returns {number[][]} made stretches [from, to) in seconds */
  get stretches() {
    return this.#spans.map((span) => span.map((at) => at / SAMPLE_RATE));
  }

  #analyse(frame) {
    logMel(this.samples, frame * HOP, values);
    for (let m = 0; m < MELS; m++) this.mel[frame * MELS + m] = (255 * (values[m] - QUIET)) / (LOUD - QUIET);
  }
}
