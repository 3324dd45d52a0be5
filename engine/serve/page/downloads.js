// Files to keep: the song as sound, as edited MIDI, and part by part, each as the server makes it.

import { made } from "./api.js";

const KINDS = {
  wav: { path: "/render", format: "wav", suffix: ".wav" },
  flac: { path: "/render", format: "flac", suffix: ".flac" },
  midi: { path: "/midi", suffix: " edited.mid" },
  stems: { path: "/stems", suffix: " stems.zip" },
};

/** The buttons of files. */
export class Downloads {
  /**
   * @param {HTMLElement} root holds a button for each of KINDS
   * @param {() => ?{name: string, midi: Blob, edits: string[][], singing: string[][]}} asked what is on the desk
   * @param {(text: string) => void} say
   * @param {(error: Error, again: () => void) => void} fail
   */
  constructor(root, asked, say, fail) {
    for (const button of root.querySelectorAll("button")) {
      const download = async () => {
        const song = asked();
        if (!song || button.getAttribute("aria-busy") === "true") return;
        button.setAttribute("aria-busy", "true");
        try {
          await save(KINDS[button.dataset.kind], song, say);
        } catch (error) {
          fail(error, download);
        }
        button.removeAttribute("aria-busy");
      };
      button.addEventListener("click", download);
    }
  }
}

async function save({ path, format, suffix }, { name, midi, edits, singing }, say) {
  const query = new URLSearchParams([...edits, ...(path === "/midi" ? [] : singing)]);
  if (format) query.set("format", format);
  say(`Making ${name}${suffix}`);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await made(path, midi, query));
  link.download = name + suffix;
  link.click();
  URL.revokeObjectURL(link.href);
  say(`${name}${suffix} is made`);
}
