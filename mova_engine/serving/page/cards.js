// What stands for a job in the lists: a row while it is made, a card when it is done or failed.

import { $, make, write } from "./dom.js";
import { inTurn } from "./jobs.js";
import { fileAddress } from "./server.js";
import { ago, duration, failure, isCancelled, isOpen, stateOf } from "./words.js";

const promptOf = (video) => video.prompt || "(no prompt)";
const seconds = (video) => duration((video.x_mova?.frames ?? 0) / (video.x_mova?.fps || 1) || Number(video.seconds));

/** Rows and cards by job. act: {cancel, open, again, remove}, each called with a job's id. */
export class Cards {
  #rows = new Map();
  #cards = new Map();

  constructor(act) {
    this.act = act;
  }

  /** Show a job as it is now. */
  show(video, jobs) {
    const held = document.activeElement?.closest("[data-id]")?.dataset.id === video.id;
    if (isOpen(video)) {
      if (!this.#rows.has(video.id)) this.#rows.set(video.id, this.#makeRow(video));
      this.#update(this.#rows.get(video.id), video);
      this.#order(jobs);
    } else {
      this.#rows.get(video.id)?.remove();
      this.#rows.delete(video.id);
      const card = this.#makeCard(video);
      const old = this.#cards.get(video.id);
      if (old) old.replaceWith(card);
      else this.#place(card, video, jobs);
      this.#cards.set(video.id, card);
      // Who held the row goes with the job.
      if (held) card.querySelector("button").focus({ preventScroll: true });
    }
    this.count();
  }

  /** Take a job away; focus goes to its neighbour. */
  remove(id) {
    const element = this.#cards.get(id) || this.#rows.get(id);
    if (!element) return;
    const neighbour = element.nextElementSibling || element.previousElementSibling;
    const held = element.contains(document.activeElement) || document.activeElement === document.body;
    element.remove();
    this.#cards.delete(id);
    this.#rows.delete(id);
    this.count();
    if (held) (neighbour?.querySelector("button") || $("clips")).focus();
  }

  /** The control of a job that opens it. */
  focus(id) {
    this.#cards.get(id)?.querySelector("button").focus();
  }

  /** Show the lists that hold something, and say so where there is nothing yet. */
  count() {
    $("making").hidden = !this.#rows.size;
    $("empty").hidden = Boolean(this.#cards.size);
  }

  #order(jobs) {
    const rows = jobs.all
      .filter(isOpen)
      .sort(inTurn)
      .map((video) => this.#rows.get(video.id))
      .filter(Boolean);
    // Moving a row would take its focus away: only those out of place are moved.
    rows.forEach((row, place) => {
      if ($("queue").children[place] !== row) $("queue").insertBefore(row, $("queue").children[place] || null);
    });
  }

  #place(card, video, jobs) {
    const next = [...$("gallery").children].find(
      (other) => (jobs.get(other.dataset.id)?.created_at ?? 0) < video.created_at,
    );
    $("gallery").insertBefore(card, next || null);
  }

  #makeRow(video) {
    const x = video.x_mova || {};
    const picture = make("img", { className: "look", alt: "", hidden: true });
    const look = make("div", { className: "screen" }, picture);
    look.style.aspectRatio = `${x.width || 16} / ${x.height || 9}`;
    const name = `state-${video.id}`;
    const cancel = make("button", {
      type: "button",
      className: "small",
      textContent: "Cancel",
      "aria-label": `Cancel: ${promptOf(video)}`,
    });
    cancel.addEventListener("click", () => {
      cancel.disabled = true;
      this.act
        .cancel(video.id)
        .catch(() => {})
        .finally(() => {
          cancel.disabled = false;
        });
    });
    const row = make(
      "li",
      { className: "row panel" },
      look,
      make(
        "div",
        { className: "rowwords" },
        make("p", { className: "prompt clamp", textContent: promptOf(video) }),
        make("progress", { max: 100, value: 0, "aria-labelledby": name }),
        make(
          "div",
          { className: "split" },
          make(
            "p",
            { className: "state", id: name },
            make("span", { className: "what" }),
            make("span", { className: "quiet rest" }),
          ),
          cancel,
        ),
      ),
    );
    row.dataset.id = video.id;
    return row;
  }

  #update(row, video) {
    const [what, rest] = stateOf(video);
    write(row.querySelector(".what"), what);
    write(row.querySelector(".rest"), rest);
    row.querySelector("progress").value = video.progress || 0;
    row.classList.toggle("running", video.status === "in_progress");
    if (video.x_mova?.preview && row.dataset.step !== String(video.x_mova.step)) {
      row.dataset.step = video.x_mova.step;
      this.#preview(row.querySelector(".look"), video);
    }
  }

  /** Swap the picture of the current latents when the next one is there, so that it never blinks. */
  async #preview(picture, video) {
    try {
      const next = new Image();
      next.src = await fileAddress(video.id, "preview", video.x_mova.step);
      await next.decode();
      picture.src = next.src;
      picture.hidden = false;
    } catch {
      // No picture this time: the job may be done by now. The next change brings another.
    }
  }

  #makeCard(video) {
    const failed = video.status === "failed";
    const card = make("li", { className: "card" });
    card.dataset.id = video.id;
    if (failed) {
      card.append(
        make(
          "div",
          { className: `screen failed${isCancelled(video) ? " cancelled" : ""}` },
          make("p", { textContent: failure(video) }),
        ),
      );
    } else {
      const picture = make("img", { alt: "", loading: "lazy", decoding: "async" });
      fileAddress(video.id, "thumbnail").then(
        (address) => {
          picture.src = address;
        },
        () => {},
      );
      const open = make(
        "button",
        { type: "button", className: "screen open", "aria-label": `Play, ${seconds(video)}: ${promptOf(video)}` },
        picture,
        make("span", { className: "play", "aria-hidden": "true" }),
        make("span", { className: "length", textContent: seconds(video), "aria-hidden": "true" }),
      );
      open.addEventListener("click", () => this.act.open(video.id));
      card.append(open);
    }
    card.append(make("p", { className: "prompt clamp", textContent: promptOf(video) }));
    const foot = make(
      "div",
      { className: "split" },
      make("p", { className: "quiet", textContent: ago(video.completed_at || video.created_at) }),
    );
    if (failed) {
      const again = make("button", {
        type: "button",
        className: "small",
        textContent: "Use again",
        "aria-label": `Use again: ${promptOf(video)}`,
      });
      const remove = make("button", {
        type: "button",
        className: "small",
        textContent: "Delete",
        "aria-label": `Delete: ${promptOf(video)}`,
      });
      again.addEventListener("click", () => this.act.again(video.id));
      remove.addEventListener("click", () => this.act.remove(video.id));
      foot.append(make("div", { className: "pair" }, again, remove));
    }
    card.append(foot);
    return card;
  }
}
