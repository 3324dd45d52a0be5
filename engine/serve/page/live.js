// Live play: the computer's keys are a piano, which the server's voice plays at once.

import { liveAddress } from "./api.js";
import { SAMPLE_RATE } from "./mel.js";

// semitones above C of the keys that lie as a piano's do, wherever their letters are printed
const KEYS = [..."AWSEDFTGYHUJKOLP"].map((letter) => `Key${letter}`).concat("Semicolon");
const OCTAVES = { KeyZ: -12, KeyX: 12 }; // semitones
const VELOCITY = 96;

/** The button that begins and ends it, and the choice of what plays. */
export class Live {
  #button;
  #program;
  #say;
  #fail;
  #socket = /** @type {WebSocket | null} */ (null);
  #context = /** @type {AudioContext | null} */ (null);
  #held = /** @type {Map<string, object>} */ (new Map()); // what ends the note of each key that is down
  #lowest = 60;

  /**
   * @param {HTMLElement} button
   * @param {HTMLSelectElement} program
   * @param {(text: string) => void} say
   * @param {(error: Error) => void} fail
   */
  constructor(button, program, say, fail) {
    this.#button = button;
    this.#program = program;
    this.#say = say;
    this.#fail = fail;
    button.hidden = !window.isSecureContext; // elsewhere browsers have no worklets
    button.addEventListener("click", () => (this.#context ? this.#end() : this.#begin()));
    addEventListener("keydown", (event) => this.#onKey(event), true);
    addEventListener("keyup", (event) => this.#release(event.code));
    addEventListener("blur", () => [...this.#held.keys()].forEach((code) => this.#release(code)));
  }

  async #begin() {
    this.#show(true);
    const context = new AudioContext({ sampleRate: SAMPLE_RATE, latencyHint: "interactive" });
    this.#context = context;
    try {
      await context.audioWorklet.addModule("/page/ring.js");
    } catch {
      if (this.#context === context) this.#lose("the server does not answer");
    }
    if (this.#context !== context) return; // ended by now
    const ring = new AudioWorkletNode(context, "ring", { numberOfInputs: 0, outputChannelCount: [1] });
    ring.connect(context.destination);
    this.#socket = new WebSocket(liveAddress());
    this.#socket.binaryType = "arraybuffer";
    this.#socket.onmessage = ({ data }) => {
      if (typeof data !== "string") ring.port.postMessage(data, [data]);
      else this.#heed(JSON.parse(data));
    };
    this.#socket.onclose = ({ reason }) => this.#lose(reason || "the server has let go");
  }

  #heed({ error, latency_s: seconds }) {
    if (error) this.#fail(new Error(error));
    else this.#say(`Keys A to ; play, Z and X change the octave; ${Math.round(1000 * seconds)} ms from key to sound`);
  }

  #lose(reason) {
    this.#end();
    this.#fail(new Error(`Live play has ended: ${reason}.`));
  }

  #end() {
    if (this.#socket) this.#socket.onclose = null;
    this.#socket?.close();
    this.#context?.close();
    this.#socket = this.#context = null;
    this.#held.clear();
    this.#show(false);
    this.#say("");
  }

  #show(isOn) {
    this.#button.setAttribute("aria-pressed", String(isOn));
    this.#program.hidden = !isOn;
  }

  #onKey(event) {
    const { code, target, repeat } = event;
    const step = KEYS.indexOf(code);
    if (!this.#context || (step < 0 && !OCTAVES[code]) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (target.matches("select, input:not([type=range])")) return;
    event.preventDefault();
    event.stopPropagation();
    if (repeat) return;
    if (step < 0) this.#lowest = Math.min(Math.max(this.#lowest + OCTAVES[code], 24), 96);
    else this.#strike(code, this.#lowest + step);
  }

  #strike(code, pitch) {
    const key = { pitch, program: Number(this.#program.value) };
    this.#held.set(code, key);
    this.#tell({ do: "note_on", velocity: VELOCITY, ...key });
  }

  #release(code) {
    if (this.#held.has(code)) this.#tell({ do: "note_off", ...this.#held.get(code) });
    this.#held.delete(code);
  }

  #tell(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }
}
