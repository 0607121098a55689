// The page of a study. It knows a pair and its clips by tokens only. Nothing is fetched but from its own server.
"use strict";

const ANSWERS = [["left", "Clip 1", "1"], ["right", "Clip 2", "2"], ["tie", "Tie", "0"], ["bad", "Both bad", "9"]];
// Of a clip's length, what must have been played for its end to count; the rest is rounding of players.
const WHOLE = 0.9;
const $ = (id) => document.getElementById(id);
const figures = [...document.querySelectorAll("figure")];
const side = (figure) => figure.dataset.side;
const video = (figure) => figure.querySelector("video");

let rater = localStorage.getItem("vote-rater");
let state = null;
let answers = {};
let busy = false;
let began = 0;
let interacted = false;
let beyond = false;

// --- talking to the server ------------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function call(path, sent) {
  const wait = [500, 1000, 2000, 4000];
  for (;;) {
    try {
      const answer = await fetch(path, {
        method: sent ? "POST" : "GET",
        headers: { "X-Rater": rater || "", "Content-Type": "application/json" },
        body: sent ? JSON.stringify(sent) : undefined,
      });
      const found = await answer.json();
      if (answer.ok) { say(""); return found; }
      if (answer.status !== 503 || !wait.length) throw new Refused(answer.status, found.error || "refused");
    } catch (error) {
      if (error instanceof Refused) throw error;
      if (!wait.length) throw new Refused(0, "The server cannot be reached. Nothing is lost: load the page again later.");
      say("The server does not answer; trying again …");
    }
    await new Promise((go) => setTimeout(go, wait.shift()));
  }
}

function newId() {
  // randomUUID is there on https and localhost only; phones of a study often come by plain http.
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function say(text) { $("said").textContent = text; }

async function guarded(work) {
  if (busy) return;
  busy = true;
  try {
    await work();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) { forget(); show("start"); } else say(error.message);
  } finally {
    busy = false;
  }
}

// --- what is shown --------------------------------------------------------------------------------------------------

function show(name) {
  for (const id of ["start", "pair", "done"]) $(id).hidden = id !== name;
  $("progress").hidden = $("who").hidden = name === "start";
  if (name !== "pair") for (const figure of figures) clear(figure);
  if (name === "start") $("who-are-you").focus();
}

function forget() {
  rater = null;
  for (const name of ["vote-rater", "vote-name", "vote-pending"]) localStorage.removeItem(name);
}

async function refresh() {
  const pending = JSON.parse(localStorage.getItem("vote-pending") || "null");
  if (pending) {
    // A vote that was on its way when the page was closed; the server knows it by its id if it has it.
    try { await call("/api/votes", pending); } catch (error) { if (error.status === 0 || error.status === 401) throw error; }
    localStorage.removeItem("vote-pending");
  }
  state = await call(beyond ? "/api/state?more=1" : "/api/state");
  $("name").textContent = localStorage.getItem("vote-name") || "";
  const goal = Math.max(state.goal, state.answered);
  $("bar").max = goal;
  $("bar").value = state.answered;
  $("count").textContent = `${state.answered} of ${goal} pairs`;
  $("undo").hidden = $("undo-done").hidden = !state.last;
  if (state.pair) return showPair();
  show("done");
  $("more").hidden = state.exhausted;
  $("done-text").textContent = state.exhausted
    ? `You have voted on ${state.answered} pairs. There is none left for you.`
    : `You have voted on ${state.answered} pairs, which was the goal.`;
  $("done-title").focus();
}

function showPair() {
  show("pair");
  answers = {};
  began = performance.now();
  $("prompt").hidden = !state.pair.prompt;
  $("prompt-text").textContent = state.pair.prompt || "";
  for (const figure of figures) {
    clear(figure);
    video(figure).src = `/clips/${state.pair[side(figure)]}`;
    if (wasHeard(figure)) figure.classList.add("done");
  }
  drawQuestions();
  update();
  $("pair-title").focus({ preventScroll: true });
  if ($("auto").checked && interacted && !figures.every(isHeard)) start(figures.find((figure) => !isHeard(figure)));
}

function clear(figure) {
  const player = video(figure);
  player.pause();
  player.removeAttribute("src");
  player.load();
  figure.classList.remove("done", "playing");
  figure.querySelector(".track div").style.width = "0";
}

function drawQuestions() {
  $("questions").replaceChildren(...state.questions.map(([name, text]) => {
    const field = document.createElement("fieldset");
    field.dataset.question = name;
    const legend = document.createElement("legend");
    legend.textContent = text;
    const row = document.createElement("div");
    row.className = "answers";
    for (const [value, label, key] of ANSWERS) {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.answer = value;
      button.setAttribute("aria-pressed", "false");
      button.append(label, " ");
      const hint = document.createElement("kbd");
      hint.textContent = key;
      button.append(hint);
      button.addEventListener("click", () => choose(name, value));
      row.append(button);
    }
    field.append(legend, row);
    return field;
  }));
}

function update() {
  const ready = figures.every(isHeard);
  const open = state.questions.filter(([name]) => !answers[name]);
  for (const field of $("questions").children) {
    const name = field.dataset.question;
    field.classList.toggle("active", ready && state.questions.length > 1 && open.length > 0 && open[0][0] === name);
    for (const button of field.querySelectorAll("button")) {
      button.setAttribute("aria-disabled", String(!ready));
      button.setAttribute("aria-pressed", String(answers[name] === button.dataset.answer));
    }
  }
  for (const figure of figures) {
    const text = isHeard(figure) ? "played" : figure.classList.contains("playing") ? "playing" : "not played yet";
    figure.querySelector(".heard").textContent = text;
    const number = side(figure) === "left" ? 1 : 2;
    const does = figure.classList.contains("playing") ? "Pause" : "Play";
    figure.querySelector(".play").setAttribute("aria-label", `${does} clip ${number}`);
  }
  $("send").hidden = state.questions.length < 2;
  $("send").setAttribute("aria-disabled", String(!ready || open.length > 0));
  const quiet = Number($("volume").value) === 0;
  $("hint").textContent = quiet ? "The volume is at zero: what is played without sound does not count."
    : ready ? "" : "Play both clips to the end, with sound; then answer.";
}

// --- playing --------------------------------------------------------------------------------------------------------

function heardKey(figure) { return `vote-heard-${state.pair[side(figure)]}`; }
function wasHeard(figure) { return sessionStorage.getItem(heardKey(figure)) === "1"; }
function isHeard(figure) { return figure.classList.contains("done"); }

async function start(figure, again) {
  for (const other of figures) if (other !== figure) video(other).pause();
  const player = video(figure);
  if (again || player.ended) player.currentTime = 0;
  try {
    await player.play();
  } catch (error) {
    if (error.name === "NotAllowedError") say("The browser wants a click before it plays sound: press play.");
  }
}

function toggle(figure) {
  const player = video(figure);
  if (player.paused || player.ended) start(figure); else player.pause();
}

function whole(player) {
  let length = 0;
  for (let n = 0; n < player.played.length; n += 1) length += player.played.end(n) - player.played.start(n);
  return length >= WHOLE * player.duration;
}

for (const figure of figures) {
  const player = video(figure);
  const isSilent = () => player.muted || player.volume === 0;
  player.addEventListener("play", () => {
    if (player.currentTime < 0.1) figure.dataset.spoiled = "";
    if (isSilent()) figure.dataset.spoiled = "1";
    figure.classList.add("playing");
    update();
  });
  player.addEventListener("volumechange", () => { if (!player.paused && isSilent()) figure.dataset.spoiled = "1"; });
  player.addEventListener("pause", () => { figure.classList.remove("playing"); if (state && state.pair) update(); });
  player.addEventListener("ratechange", () => { if (player.playbackRate !== 1) player.playbackRate = 1; });
  player.addEventListener("timeupdate", () => {
    const share = player.duration ? player.currentTime / player.duration : 0;
    figure.querySelector(".track div").style.width = `${100 * share}%`;
  });
  player.addEventListener("ended", () => {
    figure.classList.remove("playing");
    if (figure.dataset.spoiled !== "1" && whole(player)) {
      figure.classList.add("done");
      sessionStorage.setItem(heardKey(figure), "1");
    }
    update();
    const next = figures.find((other) => !isHeard(other));
    if ($("auto").checked && next && next !== figure) start(next);
  });
  player.addEventListener("error", () => {
    if (player.getAttribute("src")) say("A clip could not be loaded. Load the page again; your votes are kept.");
  });
  figure.querySelector(".screen").addEventListener("click", () => toggle(figure));
  figure.querySelector(".play").addEventListener("click", (event) => { event.stopPropagation(); toggle(figure); });
}

// --- answering ------------------------------------------------------------------------------------------------------

function choose(question, answer) {
  if (busy || !state || !state.pair) return;
  if (!figures.every(isHeard)) { $("hint").textContent = "Play both clips to the end first."; return; }
  answers[question] = answer;
  update();
  if (state.questions.length === 1) send();
}

function send() {
  if (!state || !state.pair || state.questions.some(([name]) => !answers[name]) || !figures.every(isHeard)) return;
  guarded(async () => {
    const seconds = (performance.now() - began) / 1000;
    const vote = { id: newId(), pair: state.pair.id, answers, seconds };
    localStorage.setItem("vote-pending", JSON.stringify(vote));
    try {
      await call("/api/votes", vote);
      localStorage.removeItem("vote-pending");
    } catch (error) {
      if (error.status === 0) throw error;
      localStorage.removeItem("vote-pending");
      // 409: another window of the same rater was first.
      if (error.status !== 409) throw error;
    }
    await refresh();
  });
}

function undo() {
  if (state && state.last) guarded(async () => { await call("/api/undo", { vote: state.last }); await refresh(); });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("pair").hidden || !state || !state.pair) return;
  const at = event.target;
  if (at.matches("input[type=text], input:not([type])")) return;
  if (at.matches("input[type=range]") && event.key.startsWith("Arrow")) return;
  // A button that has the focus takes Space and Enter itself.
  const own = at.matches("button, input, summary");
  const answer = ANSWERS.find(([, , key]) => key === event.key);
  if (answer) {
    const open = state.questions.find(([name]) => !answers[name]) || state.questions[state.questions.length - 1];
    choose(open[0], answer[0]);
  } else if (event.key === " " && !own) {
    const playing = figures.find((figure) => !video(figure).paused);
    const begun = figures.find((figure) => !video(figure).ended && video(figure).currentTime > 0);
    if (playing) video(playing).pause();
    else start(begun || figures.find((figure) => !isHeard(figure)) || figures[0]);
  } else if (event.key === "ArrowLeft") start(figures[0], true);
  else if (event.key === "ArrowRight") start(figures[1], true);
  else if (event.key === "u" || event.key === "U") undo();
  else if (event.key === "Enter" && !own) send();
  else return;
  interacted = true;
  event.preventDefault();
});
document.addEventListener("pointerdown", () => { interacted = true; });

// --- beginning ------------------------------------------------------------------------------------------------------

function join(name) {
  return guarded(async () => {
    rater = (await call("/api/join", { name })).rater;
    localStorage.setItem("vote-rater", rater);
    localStorage.setItem("vote-name", name.trim());
    await refresh();
  });
}

function playTone() {
  const sound = new AudioContext();
  const tone = sound.createOscillator();
  const level = sound.createGain();
  level.gain.value = 0.1 * Number($("volume").value);
  tone.connect(level).connect(sound.destination);
  tone.start();
  tone.stop(sound.currentTime + 0.6);
  tone.addEventListener("ended", () => sound.close());
}

function setVolume() {
  for (const figure of figures) video(figure).volume = Number($("volume").value);
  localStorage.setItem("vote-volume", $("volume").value);
  if (state && state.pair) update();
}

$("join").addEventListener("submit", (event) => { event.preventDefault(); interacted = true; join($("who-are-you").value); });
$("tone").addEventListener("click", playTone);
$("leave").addEventListener("click", () => { forget(); show("start"); });
$("send").addEventListener("click", send);
$("undo").addEventListener("click", undo);
$("undo-done").addEventListener("click", undo);
$("more").addEventListener("click", () => { beyond = true; guarded(refresh); });
$("volume").value = localStorage.getItem("vote-volume") || "0.8";
$("volume").addEventListener("input", setVolume);
$("auto").checked = localStorage.getItem("vote-auto") !== "0";
$("auto").addEventListener("change", () => localStorage.setItem("vote-auto", $("auto").checked ? "1" : "0"));
setVolume();

const link = new URLSearchParams(location.search).get("rater");
if (link) {
  // The address without the code: it may be copied or shown.
  history.replaceState(null, "", "/");
  join(link);
} else if (rater) {
  show("pair");
  guarded(refresh);
} else show("start");
