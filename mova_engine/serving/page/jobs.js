// The user's jobs as the server knows them, kept up to date: by streams of events, and by asking where there is none.

import { pause } from "./dom.js";
import { call, changes, isReached, Refused } from "./server.js";
import { isOpen } from "./words.js";

const PAGE = 24;
// A browser opens six connections to a server; files and requests need theirs.
const MOST_STREAMS = 2;
// Milliseconds between questions where there is no stream, and between looks at the list.
const ASK = 2000;
const LOOK = 10000;

/** Events: "change" {video, before}, new or changed; "remove" {id}; "refused" {error}, of what nobody asked for. */
export class Jobs extends EventTarget {
  #known = new Map();
  #followed = new Set();
  #streams = 0;
  #oldest = null;
  hasOlder = false;

  get(id) {
    return this.#known.get(id);
  }
  get all() {
    return [...this.#known.values()];
  }

  put(video) {
    const before = this.#known.get(video.id);
    // Answers overtake one another; a job that has ended stays so.
    if (before && !isOpen(before) && isOpen(video)) return;
    this.#known.set(video.id, video);
    if (JSON.stringify(before) !== JSON.stringify(video)) this.#tell("change", { video, before });
    if (isOpen(video) && !this.#followed.has(video.id)) this.#follow(video.id);
  }

  drop(id) {
    if (this.#known.delete(id)) this.#tell("remove", { id });
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  /** Read the newest jobs; those that another tab deleted go. */
  async refresh() {
    const before = this.all;
    const found = await call(`/v1/videos?limit=${PAGE}&order=desc`);
    const ids = new Set(found.data.map((video) => video.id));
    const since = found.has_more ? found.data.at(-1).created_at : -Infinity;
    for (const video of found.data) this.put(video);
    for (const video of before) if (video.created_at > since && !ids.has(video.id)) this.drop(video.id);
    if (this.#oldest === null) this.#reach(found);
  }

  /** Read the next page of older jobs. */
  async older() {
    const found = await call(`/v1/videos?limit=${PAGE}&order=desc&after=${this.#oldest}`);
    for (const video of found.data) this.put(video);
    this.#reach(found);
  }

  #reach(found) {
    this.#oldest = found.last_id ?? this.#oldest;
    this.hasOlder = found.has_more;
  }

  /** Look at the list from time to time while the page is seen: jobs may come from elsewhere. */
  async watch() {
    for (;;) {
      await pause(LOOK);
      if (!document.hidden && isReached()) await this.refresh().catch((error) => this.#refused(error));
    }
  }

  #refused(error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status !== 0) this.#tell("refused", { error });
  }

  async #follow(id) {
    this.#followed.add(id);
    try {
      while (this.#known.has(id) && isOpen(this.#known.get(id))) {
        await this.#once(id).catch((error) => {
          if (error.status === 404) this.drop(id);
          // A stream that breaks off ends in an error of the network's; the next question tells what is the matter.
          else if (error instanceof Refused) this.#refused(error);
          else if (!(error instanceof TypeError)) throw error;
        });
        if (this.#known.has(id) && isOpen(this.#known.get(id))) await pause(ASK);
      }
    } finally {
      this.#followed.delete(id);
    }
  }

  async #once(id) {
    // Streams are for jobs that run: in the queue little changes.
    if (this.#streams < MOST_STREAMS && this.#isAmongFirst(id)) {
      this.#streams += 1;
      const over = new AbortController();
      try {
        for await (const video of changes(id, over.signal)) {
          if (!this.#known.has(id)) return;
          this.put(video);
          if (!isOpen(video)) return;
        }
      } finally {
        this.#streams -= 1;
        over.abort();
      }
    }
    this.put(await call(`/v1/videos/${id}`));
  }

  #isAmongFirst(id) {
    const open = this.all.filter(isOpen).sort(inTurn);
    return open.findIndex((video) => video.id === id) < MOST_STREAMS;
  }
}

/** Running jobs first, then by place in the queue, then by age. */
export function inTurn(a, b) {
  const place = (video) => (video.status === "in_progress" ? 0 : (video.x_mova?.queue_position ?? Infinity));
  const difference = place(a) - place(b);
  return difference || a.created_at - b.created_at;
}
