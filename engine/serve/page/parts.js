// The list of a song's parts: each can be muted, played alone, or given another instrument.

import { partTone } from "./colour.js";

/** @typedef {import("./api.js").Part} Part */

// families of General MIDI, eight programs each
const FAMILIES =
  "Piano, Chromatic percussion, Organ, Guitar, Bass, Strings, Ensemble, Brass, Reed, Pipe, Synth lead, Synth pad, " +
  "Synth effects, Ethnic, Percussive, Sound effects";

/**
 * @param {string[]} names of the 128 programs
 * @returns {HTMLOptGroupElement[]} all of them to choose from, by family
 */
export function programs(names) {
  return FAMILIES.split(", ").map((family, index) => {
    const group = document.createElement("optgroup");
    group.label = family;
    group.append(
      ...names.slice(8 * index, 8 * index + 8).map((name, place) => new Option(name, String(8 * index + place))),
    );
    return group;
  });
}

/** The parts on the page, and what was chosen for each. */
export class Parts {
  #root;
  #changed;
  #rows = /** @type {{part: Part, row: HTMLElement, mute: HTMLElement, solo: HTMLElement, program: ?number}[]} */ ([]);

  /**
   * @param {HTMLElement} root the list
   * @param {() => void} changed called when something was chosen
   */
  constructor(root, changed) {
    this.#root = root;
    this.#changed = changed;
    root.addEventListener("keydown", (event) => this.#onKey(event));
  }

  /**
   * Show the parts of another song, as its file has them.
   * @param {Part[]} parts
   * @param {string[]} names of the 128 programs
   */
  show(parts, names) {
    this.#rows = parts.map((part, index) => this.#row(part, index, names));
    this.#root.replaceChildren(...this.#rows.map(({ row }) => row));
  }

  /** @returns {boolean[]} whether each part is heard: none that is muted, and only those alone if there are any */
  get heard() {
    const anyAlone = this.#rows.some(({ solo }) => isPressed(solo));
    return this.#rows.map(({ mute, solo }) => !isPressed(mute) && (isPressed(solo) || !anyAlone));
  }

  /** @returns {string[][]} the edits that the server is asked for: pairs of a name and a value */
  get edits() {
    const { heard } = this;
    const muted = this.#rows.filter((_, index) => !heard[index]).map(({ part }) => ["mute", part.name]);
    const others = this.#rows.filter(({ part, program }) => program !== part.program);
    return [...muted, ...others.map(({ part, program }) => ["remap", `${part.program}=${program}`])];
  }

  #row(part, index, names) {
    const row = document.createElement("li");
    row.tabIndex = 0;
    row.dataset.part = part.name;
    row.setAttribute("role", "group");
    row.setAttribute("aria-label", `${part.title}, ${part.notes} notes`);
    const swatch = element("span", "swatch");
    swatch.style.setProperty("--tone", partTone(index, part.is_drum));
    const count = element("span", "count", String(part.notes));
    const entry = { part, row, program: part.program };
    entry.mute = this.#toggle("Mute", part);
    entry.solo = this.#toggle("Solo", part);
    const name = part.is_drum ? element("span", "title", part.title) : this.#chooser(entry, names);
    row.append(swatch, name, count, entry.mute, entry.solo);
    return entry;
  }

  #toggle(what, part) {
    const button = element("button", what.toLowerCase(), what[0]);
    button.type = "button";
    button.title = `${what} (${what[0]})`;
    button.setAttribute("aria-label", `${what} ${part.title}`);
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(!isPressed(button)));
      this.#mark();
      this.#changed();
    });
    return button;
  }

  #chooser(entry, names) {
    const select = element("select", "title");
    select.setAttribute("aria-label", `Instrument that plays ${entry.part.title}`);
    select.append(...programs(names));
    select.value = String(entry.part.program);
    select.addEventListener("change", () => {
      entry.program = Number(select.value);
      this.#changed();
    });
    return select;
  }

  /** Show which parts are not heard. */
  #mark() {
    const { heard } = this;
    this.#rows.forEach(({ row }, index) => row.classList.toggle("silent", !heard[index]));
  }

  #onKey(event) {
    const entry = this.#rows.find(({ row }) => row.contains(event.target));
    const isTyping = event.target instanceof HTMLSelectElement;
    if (!entry || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
    const button = { m: entry.mute, s: entry.solo }[event.key.toLowerCase()];
    if (!button) return;
    button.click();
    event.preventDefault();
    event.stopPropagation();
  }
}

function isPressed(button) {
  return button.getAttribute("aria-pressed") === "true";
}

function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}
