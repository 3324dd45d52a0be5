// What hands do to the whole page: keys that work anywhere on it, and files that are dropped on it.

const STEP_S = 5; // that an arrow key seeks
const FINE_S = 1; // with Shift

/**
 * @param {object} deeds
 * @param {() => void} deeds.toggle
 * @param {(seconds: number) => void} deeds.seek
 * @param {(seconds: number) => void} deeds.seekBy
 * @param {(factor: number) => void} deeds.zoom
 */
export function onKeys({ toggle, seek, seekBy, zoom }) {
  const step = (event) => (event.shiftKey ? FINE_S : STEP_S);
  const keys = {
    " ": toggle,
    ArrowLeft: (event) => seekBy(-step(event)),
    ArrowRight: (event) => seekBy(step(event)),
    Home: () => seek(0),
    "+": () => zoom(1 / 1.5),
    "=": () => zoom(1 / 1.5),
    "-": () => zoom(1.5),
  };
  addEventListener("keydown", (event) => {
    const deed = keys[event.key];
    if (!deed || event.ctrlKey || event.metaKey || event.altKey || isTheirs(event)) return;
    event.preventDefault();
    deed(event);
  });
}

/** Whether a key means something to the element that has the focus. */
function isTheirs({ target, key }) {
  if (target.id === "position") return false;
  if (target.matches("button, summary")) return key === " ";
  if (target.matches("input[type=range]")) return key !== " ";
  return target.matches("select, input");
}

/**
 * Take files that are dropped anywhere on the page.
 * @param {(file: File) => void} open
 */
export function onDrop(open) {
  const show = (isOver) => document.body.classList.toggle("dropping", isOver);
  addEventListener("dragover", (event) => {
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    show(true);
  });
  addEventListener("dragleave", (event) => event.relatedTarget || show(false));
  addEventListener("drop", (event) => {
    event.preventDefault();
    show(false);
    if (event.dataTransfer.files.length) open(event.dataTransfer.files[0]);
  });
}
