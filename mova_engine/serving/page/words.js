// What the page says: durations, times, states of a job, and errors with what to do about them.

/** "3.5 s", "2 min", "1 h 5 min". */
export function duration(seconds) {
  if (seconds < 10) return `${Number(seconds.toFixed(1))} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  return minutes % 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${minutes / 60} h`;
}

/** A time left changes all the time: rounded so that it does not flicker. */
function roughly(seconds) {
  if (seconds < 5) return "a few seconds";
  return `about ${duration(seconds < 60 ? 5 * Math.ceil(seconds / 5) : seconds)}`;
}

/** When something was, as said now: "just now", "5 min ago", or the day. unix: seconds. */
export function ago(unix) {
  const seconds = Date.now() / 1000 - unix;
  if (seconds < 60) return "just now";
  if (seconds < 86400)
    return `${duration(seconds < 3600 ? 60 * Math.floor(seconds / 60) : 3600 * Math.floor(seconds / 3600))} ago`;
  return new Date(1000 * unix).toLocaleDateString(undefined, { day: "numeric", month: "short", year: "numeric" });
}

export const isOpen = (video) => video.status === "queued" || video.status === "in_progress";
export const isCancelled = (video) => video.status === "failed" && video.error?.code === "cancelled";

/** The two lines of a job that is not done: [what it does, how long it takes]. */
export function stateOf(video) {
  const x = video.x_mova || {};
  if (x.cancelling) return ["Stopping", ""];
  const time = Number.isFinite(x.eta_s) ? roughly(x.eta_s) : "";
  if (video.status === "queued") {
    const place = x.queue_position;
    const where = place ? `Queued, ${place} ${place === 1 ? "clip" : "clips"} ahead` : "Queued, next in line";
    return [where, time && `ready in ${time}`];
  }
  const rest = time && `${time} left`;
  const stepping = x.step > 0 && x.step < x.steps;
  if (stepping) return [`Step ${x.step} of ${x.steps}`, rest];
  const stage = x.stage || "starting";
  return [stage[0].toUpperCase() + stage.slice(1), rest];
}

const FAILURES = {
  worker_lost:
    "The process that made this clip ended twice. Use its settings again; if it ends again, the server's log says why.",
  out_of_memory: "The clip did not fit into memory. Use its settings again with a smaller size or fewer frames.",
  disk_full: "The server's disk is full. Delete clips that are not needed, then use the settings again.",
  internal_error: "Something went wrong in the server, and its log says what. Use the settings again, or others.",
  cancelled: "Cancelled.",
};

/** Why a job failed, in words. */
export function failure(video) {
  const { code, message } = video.error || {};
  return FAILURES[code] || message || "It failed without a reason. The server's log may have one.";
}

/** What to say of a request that was refused. */
export function refusal(error) {
  if (error.status === 429) {
    const wait = error.retryAfter === null ? "later" : `in about ${duration(error.retryAfter)}`;
    return `${sentence(error.message)} Try again ${wait}; your settings stay here.`;
  }
  if (error.status === 413) return `${sentence(error.message)} Choose a smaller picture.`;
  if (error.status >= 500) return `${sentence(error.message)} What you have written stays here; try again in a moment.`;
  return sentence(error.message);
}

function sentence(text) {
  const whole = text[0].toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}
