// The page: takes a song, has it drawn, sung and played, and does what is chosen on the way.

import * as api from "./api.js";
import { Downloads } from "./downloads.js";
import { Live } from "./live.js";
import { Maker } from "./maker.js";
import { SAMPLE_RATE } from "./mel.js";
import { Parts, programs } from "./parts.js";
import { Player } from "./player.js";
import { clock } from "./roll.js";
import { Score } from "./score.js";
import { Settings } from "./settings.js";
import { Take } from "./take.js";
import { onKeys, onDrop } from "./hands.js";

const SEGMENT_S = 5.12; // sound comes in whole segments

/** The song on the desk, or null. */
let song = /** @type {{name: string, midi: Blob, notes: api.Song, tempo: number, take: Take, maker: Maker} | null} */ (
  null
);
let offer = { voices: [], samplers: [], programs: [], limits: { max_bytes: Infinity } };
let opening = new AbortController(); // ends what is on its way to the desk
let retry = () => {};
let following = 0; // the next picture, while something plays
let isDragging = false; // the position's handle

const $ = (id) => document.getElementById(id);
const player = new Player(attend);
const score = new Score($("score"), seek);
const parts = new Parts($("parts"), () => remake());
const settings = new Settings($("settings"), (isTimed) => (isTimed ? retime() : remake()));
new Downloads($("downloads"), () => song && { ...song, ...queries() }, say, fail);
new Live($("live"), $("liveProgram"), say, fail);
const offered = api.voices().then(
  (answer) => {
    settings.offer((offer = answer));
    $("liveProgram").append(...programs(offer.programs));
  },
  (error) => fail(error, () => location.reload()),
);

/**
 * Put a song on the desk and play it. Its notes and its sound are asked for at once.
 * @param {File} file
 */
async function open(file) {
  opening.abort();
  opening = new AbortController();
  const { signal } = opening;
  say(`Reading ${file.name}`);
  let maker;
  try {
    const midi = new Blob([await bytesOf(file)]);
    const take = new Take();
    const next = { name: file.name.replace(/\.[^.]*$/, ""), midi, notes: null, tempo: 1, take };
    const notes = api.notes(midi, new URLSearchParams(), signal);
    maker = makerOf(next, settings.singing);
    maker.want(0);
    player.open(); // takes a while, in which the server works
    next.notes = await notes;
    await offered;
    if (!signal.aborted) install({ ...next, maker });
    else maker.stop();
  } catch (error) {
    maker?.stop();
    if (!signal.aborted) fail(error, () => open(file));
  }
}

/** Raises an Error in words that can be shown. */
async function bytesOf(file) {
  if (file.size > offer.limits.max_bytes) {
    throw new Error(`${file.name} has ${file.size} bytes; this server takes ${offer.limits.max_bytes} at most.`);
  }
  return file.arrayBuffer().catch(() => {
    throw new Error(`${file.name} cannot be read: it is a folder, or has gone. Choose a MIDI file.`);
  });
}

function install(next) {
  song?.maker.stop();
  song = next;
  $("empty").hidden = true;
  $("desk").hidden = false;
  $("name").textContent = next.name;
  document.title = `${next.name} – Notewave`;
  settings.reset();
  parts.show(next.notes.parts, offer.programs);
  dismiss();
  $("mended").hidden = !next.notes.mended.length;
  $("mended").textContent = next.notes.mended.join(" ");
  lay(0);
  player.play();
}

/** Lay the song's take out, with its notes. */
function lay(seconds) {
  const { notes, take } = song;
  take.reach(Math.ceil(notes.seconds / SEGMENT_S - 1e-6) * SEGMENT_S);
  score.show(notes, take.length / SAMPLE_RATE);
  score.heard = parts.heard;
  score.take = take;
  $("position").max = String(take.length / SAMPLE_RATE);
  $("length").textContent = clock(take.length / SAMPLE_RATE);
  player.load(take, seconds);
  attend();
}

/** Something else is to be heard: make it anew from here on, and go over to it when it comes. */
function remake(seconds) {
  if (!song) return;
  song.maker.stop();
  dismiss();
  song = { ...song, take: new Take() };
  const { edits, singing } = queries();
  song.maker = makerOf(song, [...edits, ...singing]);
  lay(seconds);
}

/** The notes are to be elsewhere: ask the server where. */
async function retime() {
  if (!song) return;
  opening.abort();
  opening = new AbortController();
  const { signal } = opening;
  try {
    const { tempo } = settings;
    const notes = await api.notes(song.midi, new URLSearchParams(settings.edits), signal);
    const seconds = tempo === song.tempo ? undefined : (player.position * song.tempo) / tempo;
    song = { ...song, notes, tempo };
    remake(seconds);
  } catch (error) {
    if (!signal.aborted) fail(error, retime);
  }
}

/** What the server is asked for: what is done to the notes, and how they are sung. */
function queries() {
  return { edits: [...parts.edits, ...settings.edits], singing: settings.singing };
}

function makerOf({ midi, take, tempo }, query) {
  const isHere = () => song?.take === take;
  return new Maker(take, midi, new URLSearchParams(query), tempo, {
    sounds: (from) => !isHere() || soundsFrom(from),
    made() {
      if (!isHere()) return;
      player.look();
      score.made();
    },
    timed({ firstSeconds, realTime }) {
      const speed = realTime < 10 ? realTime.toFixed(1) : realTime.toFixed(0);
      $("figures").textContent =
        `First sound after ${firstSeconds.toFixed(2)} s, ${speed}× real time, ${settings.summary}`;
    },
    ended: attend,
    failed: (error) => fail(error, attend),
  });
}

/** Whether any note is heard from a time on. */
function soundsFrom(seconds) {
  const { heard } = parts;
  return song.notes.notes.some(([onset, offset, , part]) => {
    return heard[part] && (song.notes.parts[part].is_drum ? onset : offset) >= seconds;
  });
}

function seek(seconds) {
  if (!song) return;
  player.seek(seconds);
  attend();
  showPosition(true);
}

function toggle() {
  if (!song) return $("choose").click();
  if (player.state === "paused") player.play();
  else player.pause();
}

/** See that what plays next is made, and tell how things stand. */
function attend() {
  song?.maker.want(player.position * SAMPLE_RATE);
  showState();
}

function showState() {
  const isPlaying = player.state !== "paused";
  $("play").classList.toggle("playing", isPlaying);
  $("play").setAttribute("aria-label", isPlaying ? "Pause" : "Play");
  if (!song) return say("");
  if (isPlaying && player.isHeldBack) say("Press a key or click to hear it: the browser waits for that.");
  else if (!parts.heard.includes(true)) say("All parts are muted");
  else if (player.state === "waiting") say(song.maker.isMaking ? "Making sound" : "");
  else say(isPlaying ? "Playing" : "Paused");
  following ||= requestAnimationFrame(follow);
}

/** Move the playhead as long as something plays. */
function follow() {
  showPosition(player.state === "playing");
  following = player.state === "playing" ? requestAnimationFrame(follow) : 0;
}

function showPosition(follows = false) {
  const { position } = player;
  score.showPosition(position, follows);
  if (isDragging) return;
  $("time").textContent = clock(position, 1);
  $("position").value = String(position);
  $("position").setAttribute("aria-valuetext", `${clock(position)} of ${$("length").textContent}`);
}

function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}

/**
 * Say what went wrong.
 * @param {Error & Partial<api.ServerError>} error
 * @param {() => void} [again] what another try does
 */
function fail(error, again) {
  const when = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  retry = again;
  $("again").hidden = !again || !error.isPassing;
  $("error").hidden = false;
  $("error").firstElementChild.textContent = error.message + when;
  showState();
}

function dismiss() {
  $("error").hidden = true;
  $("error").firstElementChild.textContent = "";
}

$("play").addEventListener("click", toggle);
$("dismiss").addEventListener("click", dismiss);
$("again").addEventListener("click", () => {
  dismiss();
  retry();
});
for (const id of ["choose", "chooseToo"]) $(id).addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  if ($("file").files.length) open($("file").files[0]);
  $("file").value = ""; // so that the same file can be chosen again
});
$("position").addEventListener("input", () => {
  isDragging = true;
  $("time").textContent = clock(Number($("position").value), 1);
});
$("position").addEventListener("change", () => {
  isDragging = false;
  seek(Number($("position").value));
});
$("volume").addEventListener("input", () => (player.volume = Number($("volume").value)));
$("in").addEventListener("click", () => score.zoom(1 / 1.5));
$("out").addEventListener("click", () => score.zoom(1.5));
onDrop(open);
onKeys({ toggle, seekBy: (seconds) => seek(player.position + seconds), seek, zoom: (factor) => score.zoom(factor) });
for (const touch of ["pointerdown", "keydown"])
  addEventListener(touch, () => song && player.isHeldBack && player.open());
player.volume = Number($("volume").value);
