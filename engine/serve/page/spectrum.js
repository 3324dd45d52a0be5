// The spectrogram of a take, as far as its sound is made.

import { pen } from "./canvas.js";
import { colourMap } from "./colour.js";
import { FRAME_S, MELS } from "./mel.js";

/** @typedef {import("./take.js").Take} Take */

const TILE = 512; // frames in one picture
const TILE_S = TILE * FRAME_S;

/** A take on a canvas; pictures of its stretches are kept until what they show has changed. */
export class Spectrum {
  #canvas;
  #take = /** @type {Take | null} */ (null);
  #tiles = /** @type {Map<number, OffscreenCanvas>} */ (new Map());

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.#canvas = canvas;
  }

  /** @param {Take} take */
  set take(take) {
    this.#take = take;
    this.forget();
  }

  /** No picture is right any more. */
  forget() {
    this.#tiles.clear();
  }

  /** @param {import("./score.js").View} view */
  draw(view) {
    const { context, width, height, ink } = pen(this.#canvas);
    if (!this.#take) return;
    for (const [from, to] of this.#take.analyse()) {
      for (let tile = Math.floor(from / TILE); tile * TILE < to; tile++) this.#tiles.delete(tile);
    }
    context.fillStyle = ink("--unmade");
    context.fillRect(view.gutter, 0, width, height);
    const clip = new Path2D();
    for (const [from, to] of this.#take.stretches) {
      const left = Math.max(view.x(from), view.gutter);
      clip.rect(left, 0, Math.max(view.x(to) - left, 0), height);
    }
    context.clip(clip);
    const colours = new Uint32Array(colourMap(view.isDark).buffer);
    const end = Math.min(view.start + view.span, (this.#take.mel.length / MELS) * FRAME_S);
    for (let tile = Math.floor(view.start / TILE_S); tile * TILE_S < end; tile++) {
      if (!this.#tiles.has(tile)) this.#tiles.set(tile, picture(this.#take.mel, tile * TILE, colours));
      const x = view.x(tile * TILE_S);
      context.drawImage(this.#tiles.get(tile), x, 0, view.x((tile + 1) * TILE_S) - x, height);
    }
  }
}

/** TILE frames of mels from one frame on, a pixel each, low tones at the bottom. */
function picture(mel, first, colours) {
  const canvas = new OffscreenCanvas(TILE, MELS);
  const context = canvas.getContext("2d");
  const image = context.createImageData(TILE, MELS);
  const pixels = new Uint32Array(image.data.buffer);
  const last = Math.min(TILE, mel.length / MELS - first);
  for (let frame = 0; frame < last; frame++) {
    for (let m = 0; m < MELS; m++) {
      pixels[(MELS - 1 - m) * TILE + frame] = colours[mel[(first + frame) * MELS + m]];
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
