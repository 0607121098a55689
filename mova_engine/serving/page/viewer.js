// One finished clip, large: played with sound and waveform, what it was made of, and what can be done with it.

import { $, make, write } from "./dom.js";
import { fetchFile, fileAddress } from "./server.js";
import { Waveform } from "./waveform.js";
import { ago, duration, refusal } from "./words.js";

/** act: {again, useSeed, remix, remove}, called with a job's id (remix with the prompt too, and it may refuse). */
export class Viewer {
  #video = null;
  #waveform = new Waveform($("waveform"), $("player"));

  constructor(act) {
    const player = $("player");
    $("viewer-close").addEventListener("click", () => $("viewer").close());
    $("viewer").addEventListener("click", (event) => {
      if (event.target === $("viewer")) $("viewer").close();
    });
    $("viewer").addEventListener("close", () => {
      player.pause();
      player.removeAttribute("src");
      player.load();
      this.#waveform.show(null);
      this.#video = null;
    });
    player.addEventListener("error", () => {
      if (player.getAttribute("src"))
        write(
          $("viewer-problem"),
          "The clip could not be loaded. Close it and open it again; if that fails, it may be deleted.",
        );
    });
    $("again").addEventListener("click", () => this.#leave(act.again));
    $("remove").addEventListener("click", () => act.remove(this.#video.id));
    $("remix").addEventListener("click", () => this.#askRemix(true));
    $("remix-not").addEventListener("click", () => {
      this.#askRemix(false);
      $("remix").focus();
    });
    $("remix-form").addEventListener("submit", async (event) => {
      event.preventDefault();
      const prompt = $("remix-prompt").value.trim();
      if (!prompt) {
        write($("viewer-problem"), "Say what the remix shows: the prompt is empty.");
        return;
      }
      try {
        await act.remix(this.#video.id, prompt);
        $("viewer").close();
      } catch (error) {
        write($("viewer-problem"), refusal(error));
      }
    });
    this.useSeed = act.useSeed;
  }

  get id() {
    return this.#video?.id;
  }

  close() {
    $("viewer").close();
  }

  #leave(action) {
    const { id } = this.#video;
    $("viewer").close();
    action(id);
  }

  #askRemix(wanted) {
    $("remix-form").hidden = !wanted;
    $("viewer-actions").hidden = wanted;
    write($("viewer-problem"), "");
    if (wanted) {
      $("remix-prompt").value = this.#video.prompt || "";
      $("remix-prompt").focus();
    }
  }

  /** Open a clip and play it; where people want less motion, it waits for them. */
  async open(video) {
    this.#video = video;
    const x = video.x_mova || {};
    this.#askRemix(false);
    write($("viewer-prompt"), video.prompt || "(no prompt)");
    $("viewer-enhanced").hidden = !x.enhanced_prompt;
    $("viewer-enhanced").open = false;
    write($("viewer-enhanced").querySelector("p"), x.enhanced_prompt || "");
    this.#fillFacts(video);
    const player = $("player");
    player.style.aspectRatio = `${x.width || 16} / ${x.height || 9}`;
    $("viewer").showModal();
    player.focus();
    try {
      const [address, thumbnail] = await Promise.all([
        fileAddress(video.id, "video"),
        fileAddress(video.id, "thumbnail"),
      ]);
      if (this.#video !== video) return;
      player.poster = thumbnail;
      player.src = address;
      $("download").href = address;
      $("download").download = `${video.id}.mp4`;
      if (!matchMedia("(prefers-reduced-motion: reduce)").matches) await player.play().catch(() => {});
      const { peaks } = JSON.parse(await (await fetchFile(video.id, "waveform")).text());
      if (this.#video === video) this.#waveform.show(peaks);
    } catch (error) {
      if (this.#video === video) write($("viewer-problem"), refusal(error));
    }
  }

  #fillFacts(video) {
    const x = video.x_mova || {};
    const own = x.settings || {};
    const adapters = Object.entries(own.adapters || {})
      .map(([name, strength]) => `${name} at ${strength}`)
      .join(", ");
    const seed = make("button", {
      type: "button",
      className: "plain",
      textContent: String(x.seed),
      "aria-label": `Use the seed ${x.seed}`,
      title: "Use this seed",
    });
    seed.addEventListener("click", () => this.#leave(() => this.useSeed(x.seed)));
    const rows = [
      ["Size", x.width ? `${x.width} × ${x.height}` : video.size],
      ["Length", x.frames ? `${duration(x.frames / x.fps)}, ${x.frames} frames` : `${video.seconds} s`],
      ["Seed", Number.isFinite(x.seed) ? seed : ""],
      ["Steps", x.steps],
      ["Guidance", own.text_scale],
      ["Without", own.negative_prompt],
      ["Adapters", adapters],
      ["Model", video.model],
      ["Took", video.completed_at && x.started_at ? duration(video.completed_at - x.started_at) : ""],
      ["Made", ago(video.completed_at || video.created_at)],
    ];
    $("facts").replaceChildren(
      ...rows
        .filter(([, value]) => value !== undefined && value !== null && value !== "")
        .map(([name, value]) =>
          make(
            "div",
            {},
            make("dt", { textContent: name }),
            make("dd", {}, value instanceof Node ? value : String(value)),
          ),
        ),
    );
  }
}
