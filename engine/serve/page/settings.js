// What is chosen for the whole song: tempo, key and how the voice sings.

const TEMPO = 100; // percent, as the song is

/** The form of settings. Each field's name is that of the server's option. */
export class Settings {
  #form;
  #voices = [];

  /**
   * @param {HTMLFormElement} form
   * @param {(isTimed: boolean) => void} changed called when something was chosen; whether it moves notes
   */
  constructor(form, changed) {
    this.#form = form;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => this.#label());
    form.addEventListener("change", (event) => {
      if (!event.target.checkValidity()) return event.target.reportValidity();
      if (event.target.name === "voice") this.#recommend();
      changed(["tempo", "transpose"].includes(event.target.name));
    });
    form.elements.another.addEventListener("click", () => {
      form.elements.seed.value = String(crypto.getRandomValues(new Uint16Array(1))[0]);
      changed(false);
    });
  }

  /**
   * Offer what the server has.
   * @param {{voices: any[], samplers: string[]}} offer
   */
  offer({ voices, samplers }) {
    const { voice, sampler } = this.#form.elements;
    this.#voices = voices;
    voice.replaceChildren(...voices.map(({ name, default: chosen }) => new Option(name, name, chosen, chosen)));
    sampler.replaceChildren(new Option("", ""), ...samplers.map((name) => new Option(name, name)));
    this.#recommend();
  }

  /** A new song is as its file has it. */
  reset() {
    this.#form.elements.tempo.value = String(TEMPO);
    this.#form.elements.transpose.value = "0";
    this.#label();
  }

  /** @returns {number} times as fast as the file */
  get tempo() {
    return Number(this.#form.elements.tempo.value) / TEMPO;
  }

  /** @returns {string} the voice and its seed, in words */
  get summary() {
    const { voice, seed } = this.#form.elements;
    return `voice ${voice.value}, seed ${seed.value}`;
  }

  /** @returns {string[][]} edits of the notes: pairs of a name and a value */
  get edits() {
    const { transpose } = this.#form.elements;
    const edits = { tempo: this.tempo === 1 ? "" : String(this.tempo), transpose: Number(transpose.value) || "" };
    return Object.entries(edits).filter(([, value]) => value !== "");
  }

  /** @returns {string[][]} how it is sung: pairs of a name and a value; what is left to the voice is not there */
  get singing() {
    const names = ["voice", "sampler", "steps", "guidance", "seed"];
    return names.map((name) => [name, this.#form.elements[name].value]).filter(([, value]) => value !== "");
  }

  /** Say what the chosen voice's maker recommends, where nothing else is chosen. */
  #recommend() {
    const { voice, sampler, steps, guidance } = this.#form.elements;
    const chosen = this.#voices.find(({ name }) => name === voice.value);
    if (!chosen) return;
    sampler.options[0].text = `${chosen.sampling.sampler} (the voice’s)`;
    steps.placeholder = String(chosen.sampling.steps);
    guidance.placeholder = String(chosen.sampling.guidance);
  }

  #label() {
    const { tempo, transpose, tempoShown, transposeShown } = this.#form.elements;
    tempoShown.value = `${tempo.value} %`;
    const steps = Number(transpose.value);
    transposeShown.value = steps > 0 ? `+${steps}` : String(steps).replace("-", "−");
    tempo.setAttribute("aria-valuetext", tempoShown.value);
    transpose.setAttribute("aria-valuetext", `${steps} semitones`);
  }
}
