// The page of the server: a form for new clips, the queue, and the clips that are done.

import { Cards } from "./cards.js";
import {
  beginForm,
  beyondForm,
  fillForm,
  offer,
  readForm,
  requestBody,
  rollSeed,
  setEnhanced,
  setModels,
} from "./compose.js";
import { $, announce, pause, write } from "./dom.js";
import { firstFrame, takeFrame } from "./frame.js";
import { Jobs } from "./jobs.js";
import { call, connection, fetchFile, hasKey, isReached, newToken, Refused, setKey } from "./server.js";
import { download, readSettings, writeSettings } from "./settings_file.js";
import { failure, isCancelled, isOpen, refusal } from "./words.js";
import { Viewer } from "./viewer.js";

const jobs = new Jobs();
const act = { cancel, open: (id) => viewer.open(jobs.get(id)), again, remove, remix, useSeed };
const cards = new Cards(act);
const viewer = new Viewer(act);
let busy = false;
// The last request that got no answer, and its key: sent again, it makes no second clip.
let unanswered = { settings: "", token: "" };

function problem(text) {
  write($("problem"), text);
}

/** Do something that the user asked for; what is refused is said in words. */
async function guarded(work) {
  try {
    problem("");
    write($("expected"), "");
    await work();
  } catch (error) {
    if (error.status === 401) {
      await enter();
      return;
    }
    write($("expected"), "");
    problem(error instanceof Refused ? refusal(error) : error.message);
    error.field?.focus();
    if (error.field?.closest("details")) error.field.closest("details").open = true;
  }
}

// --- the key --------------------------------------------------------------------------------------------------------

let entering = null;

/** Ask for a key until the server takes it. */
function enter() {
  entering ??= new Promise((done) => {
    write($("key-problem"), hasKey() ? "The server does not take this key any more." : "");
    setKey("");
    $("entrance").showModal();
    $("entrance-form").onsubmit = async (event) => {
      event.preventDefault();
      setKey($("key").value.trim());
      try {
        setModels((await call("/v1/models")).data);
        $("key").value = "";
        $("entrance").close();
        done();
      } catch (error) {
        setKey("");
        write(
          $("key-problem"),
          error.status === 401 ? "The server does not know this key. Look for typing errors." : refusal(error),
        );
        $("key").focus();
      }
    };
  }).then(() => {
    entering = null;
    return load().catch((error) => problem(refusal(error)));
  });
  return entering;
}

$("entrance").addEventListener("cancel", (event) => event.preventDefault());
// Browsers let a second press of Escape close it all the same.
$("entrance").addEventListener("close", () => {
  if (!hasKey()) $("entrance").showModal();
});

// --- the connection -------------------------------------------------------------------------------------------------

function tell(text) {
  write($("connection"), text);
  announce(text);
}

connection.addEventListener("change", async ({ detail: reached }) => {
  if (reached) return;
  tell("The server does not answer. Trying again; clips in the queue are kept.");
  for (let wait = 500; !isReached(); wait = Math.min(2 * wait, 4000)) {
    await pause(wait);
    await load().catch((error) => {
      if (error.status === 401) enter();
    });
  }
  tell("The server answers again.");
  await pause(5000);
  if (isReached()) write($("connection"), "");
});

async function load() {
  setModels((await call("/v1/models")).data);
  await jobs.refresh();
  cards.count();
  $("more").hidden = !jobs.hasOlder;
}

// --- jobs -----------------------------------------------------------------------------------------------------------

jobs.addEventListener("change", ({ detail: { video, before } }) => {
  cards.show(video, jobs);
  if (!before || before.status === video.status) return;
  const name = (video.prompt || "").slice(0, 80);
  if (video.status === "in_progress") announce(`Being made: ${name}`);
  else if (video.status === "completed") announce(`Ready: ${name}`);
  else if (isCancelled(video)) announce(`Cancelled: ${name}`);
  else if (!isOpen(video)) announce(`Failed: ${name}. ${failure(video)}`);
});
jobs.addEventListener("remove", ({ detail: { id } }) => {
  if (viewer.id === id) viewer.close();
  cards.remove(id);
});
jobs.addEventListener("refused", ({ detail: { error } }) => {
  if (error.status === 401) enter();
});

function create() {
  return guarded(async () => {
    if (busy) return;
    const settings = readForm();
    const picture = firstFrame();
    const same = JSON.stringify([settings, picture && [picture.name, picture.size]]);
    if (unanswered.settings !== same) unanswered = { settings: same, token: newToken() };
    busy = true;
    $("create").setAttribute("aria-disabled", "true");
    write($("expected"), "Sending …");
    try {
      const send = requestBody(settings, picture);
      jobs.put(await call("/v1/videos", { send, headers: { "Idempotency-Key": unanswered.token } }));
      unanswered = { settings: "", token: "" };
      if ($("seed-random").checked) rollSeed();
      write($("expected"), "Queued; it is in the list below.");
      announce("Queued.");
    } finally {
      busy = false;
      $("create").removeAttribute("aria-disabled");
    }
  });
}

function cancel(id) {
  return guarded(async () => jobs.put(await call(`/v1/videos/${id}/cancel`, { method: "POST" })));
}

function again(id) {
  return guarded(async () => {
    const video = jobs.get(id);
    const x = video.x_mova || {};
    const missing = fillForm({ model: video.model, prompt: video.prompt, ...x.settings });
    await takeFrame(x.settings?.first_frame ? await pictureOf(id) : null);
    settle("The form has the settings of this clip.", [...missing, ...beyondForm(x.settings || {})]);
  });
}

async function pictureOf(id) {
  const blob = await fetchFile(id, "first_frame");
  return new File([blob], "first-frame.png", { type: blob.type });
}

async function remix(id, prompt) {
  jobs.put(await call(`/v1/videos/${id}/remix`, { send: { prompt } }));
  announce("The remix is queued.");
}

function useSeed(seed) {
  $("seed").value = seed;
  $("seed-random").checked = false;
  $("seed").focus();
}

function remove(id) {
  write($("confirm-what"), jobs.get(id).prompt || "");
  $("confirm").showModal();
  $("confirm-no").focus();
  $("confirm-yes").onclick = async () => {
    $("confirm").close();
    viewer.close();
    await guarded(async () => {
      await call(`/v1/videos/${id}`, { method: "DELETE" });
      jobs.drop(id);
      announce("Deleted.");
    });
  };
}

$("confirm-no").addEventListener("click", () => $("confirm").close());
$("more").addEventListener("click", () =>
  guarded(async () => {
    await jobs.older();
    $("more").hidden = !jobs.hasOlder;
  }),
);

// --- the form -------------------------------------------------------------------------------------------------------

/** After settings were filled in: say so, and what of them this server lacks. */
function settle(text, missing) {
  announce(text);
  if (missing.length)
    problem(`This page or server does not offer ${missing.join(", ")}. The rest of the settings is filled in.`);
  $("compose").scrollIntoView({ block: "start" });
  $("prompt").focus({ preventScroll: true });
}

function openSettings(file) {
  return guarded(async () => {
    const { settings, picture, unknown } = await readSettings(file);
    const missing = fillForm(settings);
    await takeFrame(picture);
    settle(`Settings of ${file.name} are filled in.`, [...missing, ...unknown.map((name) => `the setting ${name}`)]);
  });
}

function take(file) {
  const isSettings = file.type === "application/json" || file.name.endsWith(".json");
  return isSettings ? openSettings(file) : guarded(() => takeFrame(file, offer().limits?.upload_bytes));
}

function enhance() {
  return guarded(async () => {
    const { prompt, model } = readForm();
    const send = new FormData();
    send.append("prompt", prompt);
    send.append("model", model);
    if (firstFrame()) send.append("input_reference", firstFrame(), firstFrame().name || "first-frame.png");
    $("enhance").setAttribute("aria-disabled", "true");
    write($("enhanced-about"), "Writing …");
    try {
      const found = await call("/v1/prompts/enhance", { send });
      if (found.used === "enhanced") setEnhanced(found.prompt, found.warning);
      else setEnhanced("", `Your own prompt is kept: ${found.warning || "no better one was found"}`);
    } catch (error) {
      setEnhanced($("enhanced").value, "");
      throw error;
    } finally {
      $("enhance").removeAttribute("aria-disabled");
    }
  });
}

$("compose").addEventListener("submit", (event) => {
  event.preventDefault();
  create();
});
$("compose").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    create();
  }
});
$("enhance").addEventListener("click", () => {
  if (!$("enhance").hasAttribute("aria-disabled")) enhance();
});
$("frame-file").addEventListener("change", () => {
  if ($("frame-file").files.length) take($("frame-file").files[0]);
});
$("frame-remove").addEventListener("click", () => {
  takeFrame(null);
  $("frame-file").focus();
});
$("settings-open").addEventListener("click", () => $("settings-file").click());
$("settings-file").addEventListener("change", async () => {
  const [file] = $("settings-file").files;
  if (file) await openSettings(file);
  $("settings-file").value = "";
});
$("settings-save").addEventListener("click", () =>
  guarded(async () => {
    const settings = readForm();
    download(await writeSettings(settings, firstFrame()), `mova-settings-${settings.seed}.json`);
  }),
);

// Files may be dropped anywhere on the page, and pictures pasted.
document.addEventListener("dragover", (event) => {
  if (event.dataTransfer?.types.includes("Files")) {
    event.preventDefault();
    $("drop").classList.add("over");
  }
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  $("drop").classList.remove("over");
  if (!event.dataTransfer?.files.length) return;
  event.preventDefault();
  take(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files || [])].find((each) => each.type.startsWith("image/"));
  if (file) {
    event.preventDefault();
    take(file);
  }
});

beginForm();
load().catch((error) => (error.status === 401 ? enter() : problem(refusal(error))));
jobs.watch();
