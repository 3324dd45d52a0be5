// Talks to the server: the requests that the page makes, and the sentences of those that are refused.

/** @typedef {{name: string, title: string, program: number | null, is_drum: boolean, notes: number}} Part */
/** @typedef {{seconds: number, parts: Part[], notes: number[][], mended: string[]}} Song */
/** @typedef {{seconds: number, chunks: AsyncGenerator<Int16Array>}} Rendering */

const GONE = "The server does not answer: it may have ended, or the network is down. Start notewave serve again.";
const token = takeToken();

/** Why something was refused, for the musician's eyes. */
export class ServerError extends Error {
  /**
   * @param {string} message
   * @param {number} retryAfter seconds until it is worth another try; 0 where nobody knows
   * @param {boolean} isPassing whether another try may fare better
   */
  constructor(message, retryAfter = 0, isPassing = false) {
    super(message);
    this.retryAfter = retryAfter;
    this.isPassing = isPassing;
  }
}

/** @returns {Promise<any>} the voices, samplers, programs and limits of this server */
export async function voices() {
  return (await ask("/voices")).json();
}

/**
 * @param {Blob} midi
 * @param {URLSearchParams} query edits
 * @param {AbortSignal} signal
 * @returns {Promise<Song>}
 */
export async function notes(midi, query, signal) {
  return (await ask(`/notes?${query}`, midi, signal)).json();
}

/**
 * Begin a render; its sound comes as it is made.
 * @param {Blob} midi
 * @param {URLSearchParams} query edits and sampling options
 * @param {AbortSignal} signal
 * @returns {Promise<Rendering>}
 */
export async function render(midi, query, signal) {
  const response = await ask(`/render?format=s16le&${query}`, midi, signal);
  return { seconds: Number(response.headers.get("X-Notewave-Seconds")), chunks: samples(response) };
}

/**
 * A file that the server makes.
 * @param {string} path /render, /midi or /stems
 * @param {Blob} midi
 * @param {URLSearchParams} query
 * @returns {Promise<Blob>}
 */
export async function made(path, midi, query) {
  const response = await ask(`${path}?${query}`, midi);
  return response.blob().catch(gone);
}

/** @returns {string} where live play is, with all that the server must know to open it */
export function liveAddress() {
  const address = new URL("/live", location.href.replace(/^http/, "ws"));
  address.searchParams.set("rate", "16000");
  if (token) address.searchParams.set("token", token);
  return address.href;
}

async function ask(path, body, signal) {
  const headers = { ...(token && { Authorization: `Bearer ${token}` }), ...(body && { "Content-Type": "audio/midi" }) };
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body, signal }).catch(gone);
  if (response.ok) return response;
  const sentence = await response.json().then(
    (answer) => answer.error,
    () => `The server answered ${response.status} ${response.statusText}, and not why.`,
  );
  throw new ServerError(sentence, Number(response.headers.get("Retry-After")) || 0, response.status >= 429);
}

/** The samples of an answer, in pieces as they come; a sample may be torn between two. */
async function* samples(response) {
  const reader = response.body.getReader();
  let rest = new Uint8Array(0);
  for (;;) {
    const { done, value } = await reader.read().catch(gone);
    if (done) return;
    const bytes = new Uint8Array(rest.length + value.length);
    bytes.set(rest);
    bytes.set(value, rest.length);
    const whole = bytes.length & ~1;
    rest = bytes.slice(whole);
    if (whole) yield new Int16Array(bytes.buffer, 0, whole / 2);
  }
}

/** @returns {never} */
function gone(error) {
  throw error.name === "AbortError" ? error : new ServerError(GONE, 0, true);
}

/** The token that the page was opened with; it leaves the address bar, and is nowhere but in memory. */
function takeToken() {
  const address = new URL(location.href);
  const given = address.searchParams.get("token");
  if (given === null) return null;
  address.searchParams.delete("token");
  history.replaceState(null, "", address);
  return given;
}
