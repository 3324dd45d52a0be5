// Has a take made: asks the server for what is not made yet, from where the music plays.

import { render } from "./api.js";
import { HOP, SAMPLE_RATE } from "./mel.js";

/** Fills one take by one render at a time. */
export class Maker {
  /** The render under way: the sample that comes next, and what ends it. */
  #running = /** @type {{next: number, abort: AbortController} | null} */ (null);
  #midi;
  #query;
  #tempo;
  #calls;

  /**
   * @param {import("./take.js").Take} take
   * @param {Blob} midi
   * @param {URLSearchParams} query edits and sampling options, without a start
   * @param {number} tempo of the take: a start is a time of the song as it is in the file
   * @param {object} calls
   * @param {(from: number) => boolean} calls.sounds whether any note sounds from a time in seconds on
   * @param {() => void} calls.made there is new sound
   * @param {(figures: {firstSeconds: number, realTime: number}) => void} calls.timed how fast a render was by now
   * @param {() => void} calls.ended a render has come to its end
   * @param {(error: Error) => void} calls.failed
   */
  constructor(take, midi, query, tempo, calls) {
    this.take = take;
    this.#tempo = tempo;
    this.#midi = midi;
    this.#query = query;
    this.#calls = calls;
  }

  /** Whether sound is on its way. */
  get isMaking() {
    return this.#running !== null;
  }

  /**
   * See that what is not made from a sample on is being made.
   * @param {number} at
   */
  want(at) {
    const gap = this.take.gap(at);
    if (this.#running && gap && Math.abs(gap[0] - this.#running.next) < HOP) return;
    this.stop();
    if (!gap) return;
    gap[0] -= gap[0] % HOP; // a request may have been stopped within a frame
    if (this.#calls.sounds(gap[0] / SAMPLE_RATE)) {
      this.#run(gap[0], gap[1]);
    } else if (this.take.length) {
      this.take.leave(gap[0], gap[1]);
      this.#calls.made();
    }
  }

  /** Have nothing made any more. */
  stop() {
    this.#running?.abort.abort();
    this.#running = null;
  }

  async #run(from, to) {
    const running = { next: from, abort: new AbortController() };
    this.#running = running;
    try {
      await this.#receive(running, from, to);
    } catch (error) {
      if (this.#running !== running) return; // stopped on purpose
      this.#running = null;
      this.#calls.failed(error);
      return;
    }
    if (this.#running !== running) return;
    this.stop();
    this.#calls.ended();
  }

  async #receive(running, from, to) {
    const query = new URLSearchParams(this.#query);
    if (from) query.set("start", String((from / SAMPLE_RATE) * this.#tempo));
    const asked = performance.now();
    const { seconds, chunks } = await render(this.#midi, query, running.abort.signal);
    if (!from) this.take.reach(seconds);
    let firstSeconds = 0;
    for await (const chunk of chunks) {
      if (this.#running !== running) return;
      const spent = (performance.now() - asked) / 1000;
      firstSeconds ||= spent;
      this.take.write(running.next, chunk);
      running.next += chunk.length;
      this.#calls.made();
      this.#calls.timed({ firstSeconds, realTime: (running.next - from) / SAMPLE_RATE / spent });
      if (running.next >= Math.min(to, this.take.length)) return;
    }
    this.take.leave(running.next, Math.min(to, this.take.length));
    this.#calls.made();
  }
}
