// Talking to the server: requests, the stream of a job's changes, files, the key. Nothing else fetches.

const KEY = "mova-key";
// Attributes of Refused for a server that cannot be reached.
const UNREACHED = [
  0,
  "unreached",
  "The server cannot be reached. What you have written stays here; try again in a moment.",
];

/** A request that the server refused, or that did not reach it (status 0). */
export class Refused extends Error {
  constructor(status, code, message, retryAfter = null) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

/** Whether the server answered the last request; `connection` events tell of a change. */
export const connection = new EventTarget();
let reached = true;

function setReached(now) {
  if (now === reached) return;
  reached = now;
  connection.dispatchEvent(new CustomEvent("change", { detail: now }));
}

export const isReached = () => reached;
export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

function withKey(headers = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...headers, Authorization: `Bearer ${key}` } : headers;
}

async function answer(path, { method = "GET", headers, body, signal } = {}) {
  let response;
  try {
    response = await fetch(path, { method, headers: withKey(headers), body, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    setReached(false);
    throw new Refused(...UNREACHED);
  }
  // What stands before a server that restarts answers for it without the API's form of an error.
  const told = response.ok
    ? null
    : await response.json().then(
        (found) => found.error,
        () => null,
      );
  if (!response.ok && !told && response.status >= 502) {
    setReached(false);
    throw new Refused(...UNREACHED);
  }
  setReached(true);
  if (response.ok) return response;
  const wait = Number.parseInt(response.headers.get("Retry-After"), 10);
  const message = told?.message || `The server answered with status ${response.status}.`;
  throw new Refused(response.status, told?.code || "", message, Number.isFinite(wait) ? wait : null);
}

/** A request whose answer is JSON. send: an object (sent as JSON) or FormData. */
export async function call(path, { method, send, headers = {}, signal } = {}) {
  const asJson = send !== undefined && !(send instanceof FormData);
  const response = await answer(path, {
    method: method || (send === undefined ? "GET" : "POST"),
    headers: asJson ? { ...headers, "Content-Type": "application/json" } : headers,
    body: asJson ? JSON.stringify(send) : send,
    signal,
  });
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    setReached(false);
    throw new Refused(...UNREACHED);
  }
}

/** The states of a job as the server tells them, until it ends the stream (Server-Sent Events, read with the key). */
export async function* changes(id, signal) {
  const response = await answer(`/v1/videos/${id}/events`, { headers: { Accept: "text/event-stream" }, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value.replaceAll("\r", "");
      const blocks = rest.split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block
          .split("\n")
          .filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5));
        if (data.length) yield JSON.parse(data.join("\n"));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// --- files of a job -------------------------------------------------------------------------------------------------

// Addresses of what was fetched with the key: {address on the server: promise of a blob address}, oldest first.
const blobs = new Map();
const MOST_BLOBS = 60;

/** A file of a job as a Blob. variant: video, thumbnail, preview, waveform, first_frame ... */
export async function fetchFile(id, variant) {
  return (await answer(`/v1/videos/${id}/content?variant=${variant}`)).blob();
}

/** An address for an element's `src`. With a key the file is fetched first, for elements send no headers. */
export async function fileAddress(id, variant, version = "") {
  const path = `/v1/videos/${id}/content?variant=${variant}${version === "" ? "" : `&version=${version}`}`;
  if (!hasKey()) return path;
  if (!blobs.has(path)) {
    const address = answer(path)
      .then((response) => response.blob())
      .then((blob) => URL.createObjectURL(blob));
    address.catch(() => blobs.delete(path));
    blobs.set(path, address);
    if (blobs.size > MOST_BLOBS) {
      const [oldest] = blobs.keys();
      blobs.get(oldest).then(
        (found) => URL.revokeObjectURL(found),
        () => {},
      );
      blobs.delete(oldest);
    }
  }
  return blobs.get(path);
}

/** 24 hex digits of chance. (randomUUID is there on https and localhost only.) */
export function newToken() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
