// A worklet that plays hops of sound as they come, a little after they do, so that small delays are not heard.

const CUSHION = 2; // hops that are there before it begins, and again after it ran dry
const MOST = 8; // hops that may be there: older ones are skipped, or all that follows would be late

class Ring extends AudioWorkletProcessor {
  #hops = /** @type {Int16Array[]} */ ([]);
  #at = 0; // in the first of them
  #isPlaying = false;

  constructor() {
    super();
    this.port.onmessage = ({ data }) => {
      this.#hops.push(new Int16Array(data));
      if (this.#hops.length > MOST) this.#hops.splice(0, this.#hops.length - CUSHION);
      if (this.#hops.length >= CUSHION) this.#isPlaying = true;
    };
  }

  process(inputs, [[sound]]) {
    for (let n = 0; n < sound.length && this.#isPlaying; n++) {
      sound[n] = this.#hops[0][this.#at++] / 32768;
      if (this.#at < this.#hops[0].length) continue;
      this.#hops.shift();
      this.#at = 0;
      this.#isPlaying = this.#hops.length > 0;
    }
    return true;
  }
}

registerProcessor("ring", Ring);
