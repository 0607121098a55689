// The form: what the served models offer as choices, and a clip's settings read from it and filled into it.

import { $, make, write } from "./dom.js";
import { cropTo } from "./frame.js";
import { duration } from "./words.js";

// Seeds are drawn below the first; those up to the second can be typed: larger ones JavaScript would round.
const DRAWN_SEED = 2 ** 31;
const MOST_SEED = Number.MAX_SAFE_INTEGER;
const DRAFT = "mova-draft";
// Settings that only programs can ask for, as they are where nobody did.
const PLAIN = {
  solver: null,
  guidance: null,
  bridge_scale: null,
  audio_text_scale: null,
  audio_bridge_scale: null,
  guide_from: null,
  guide_until: null,
  guidance_rescale: null,
  cache: "none",
  mode: "generate",
  last_frame: false,
};
let models = [];
// The prompt of which the enhanced one was made, where that is known.
let enhancedOf = null;

const chosen = () => models.find((model) => model.id === $("model").value) || models[0];
/** What the chosen model takes (`x_mova` of /v1/models); an empty object before it is known. */
export const offer = () => chosen()?.x_mova || {};

function fillSelect(select, rows, wanted) {
  select.replaceChildren(...rows.map(([value, text]) => make("option", { value, textContent: text })));
  if (rows.some(([value]) => value === wanted)) select.value = wanted;
}

/** Offer what these models take; what was chosen and still exists stays chosen. */
export function setModels(found) {
  models = found;
  fillSelect(
    $("model"),
    found.map((model) => [model.id, model.id]),
    $("model").value,
  );
  $("model-field").hidden = found.length < 2;
  write($("served"), found.length === 1 ? found[0].id : "");
  setOffer();
}

function setOffer() {
  const x = offer();
  fillSelect(
    $("size"),
    x.sizes.map((size) => [`${size.width}x${size.height}`, `${size.width} × ${size.height}`]),
    $("size").value,
  );
  const lengths = x.frames.map((frames) => [String(frames), `${duration(frames / x.fps)}, ${frames} frames`]);
  fillSelect($("frames"), lengths, $("frames").value || String(x.default_frames));
  for (const [id, value] of [
    ["steps", x.steps],
    ["guidance", x.guidance_scale],
  ]) {
    if ($(id).value === "" || $(id).value === $(id).dataset.default) $(id).value = value ?? "";
    $(id).dataset.default = String(value ?? "");
  }
  if (x.most_steps) $("steps").max = x.most_steps;
  const guided = x.guidance !== "none";
  $("guidance-field").hidden = $("negative-field").hidden = !guided;
  fillAdapters(x.adapters || []);
  shapeChanged();
  promptChanged();
}

function fillAdapters(adapters) {
  const before = strengths();
  $("adapters").hidden = !adapters.length;
  $("adapter-list").replaceChildren(
    ...adapters.map(({ name }) => {
      const use = make("input", { type: "checkbox", checked: name in before, value: name });
      const strength = make("input", {
        type: "number",
        step: "0.05",
        value: before[name] ?? 1,
        "aria-label": `Strength of ${name}`,
      });
      strength.disabled = !use.checked;
      use.addEventListener("change", () => {
        strength.disabled = !use.checked;
      });
      return make("div", { className: "adapter" }, make("label", { className: "check" }, use, ` ${name}`), strength);
    }),
  );
}

function strengths() {
  const rows = [...$("adapter-list").children].map((row) => row.querySelectorAll("input"));
  return Object.fromEntries(
    rows.filter(([use]) => use.checked).map(([use, strength]) => [use.value, Number(strength.value)]),
  );
}

function shapeChanged() {
  const [width, height] = $("size").value.split("x").map(Number);
  if (width) cropTo(width, height);
  const x = offer();
  const usual = x.clip_seconds;
  const [first] = x.sizes || [];
  const plain =
    first &&
    $("size").value === `${first.width}x${first.height}` &&
    Number($("frames").value) === x.default_frames &&
    Number($("steps").value) === x.steps;
  write($("expected"), usual && plain ? `takes about ${duration(usual)}` : "");
}

function promptChanged() {
  const most = offer().limits?.prompt_characters;
  const length = $("prompt").value.length;
  write($("prompt-count"), most && length > 0.8 * most ? `${length} of ${most} characters` : "");
  sessionStorage.setItem(DRAFT, JSON.stringify([$("prompt").value, $("enhanced").value]));
  enhancedChanged();
}

/** Say what the enhanced prompt is good for now, unless there is more to say of it. */
function enhancedChanged() {
  const text = $("enhanced").value.trim();
  const none = !offer().enhance || offer().enhance === "none";
  $("enhance").hidden = none;
  $("enhanced-field").hidden = none && !text;
  $("enhanced-clear").hidden = !text;
  const stale = text && enhancedOf !== null && enhancedOf !== $("prompt").value.trim();
  if (stale) sayOfEnhanced("Made of another prompt: enhance again, or clear this.", true);
  else sayOfEnhanced(text ? "The model gets this text. Change it as you like." : "", false);
}

function sayOfEnhanced(text, isWarning) {
  $("enhanced-about").classList.toggle("warning", isWarning);
  write($("enhanced-about"), text);
}

/** Take an enhanced prompt, or the reason why the user's own is kept. */
export function setEnhanced(text, warning) {
  $("enhanced").value = text;
  enhancedOf = text ? $("prompt").value.trim() : null;
  promptChanged();
  if (warning) sayOfEnhanced(warning, true);
}

export function rollSeed() {
  $("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0] % DRAWN_SEED);
}

/** The settings as they stand in the form. Throws an Error in words, with `field`, for what cannot be. */
export function readForm() {
  const wrong = (id, text) => {
    throw Object.assign(new Error(text), { field: $(id) });
  };
  const number = (id, least, most, name) => {
    const value = Number($(id).value);
    if ($(id).value.trim() === "" || !Number.isFinite(value) || value < least || value > most) {
      wrong(id, `${name} must be a number from ${least} to ${most}.`);
    }
    return value;
  };
  const x = offer();
  const prompt = $("prompt").value.trim();
  if (!prompt) wrong("prompt", "Say what the clip shows and sounds like: the prompt is empty.");
  const most = x.limits?.prompt_characters;
  if (most && prompt.length > most)
    wrong("prompt", `The prompt has ${prompt.length} characters; this server takes up to ${most}. Shorten it.`);
  const seed = number("seed", 0, MOST_SEED, "The seed");
  const steps = number("steps", 1, x.most_steps || 1000, "Steps");
  for (const [id, value, name] of [
    ["seed", seed, "The seed"],
    ["steps", steps, "Steps"],
  ]) {
    if (!Number.isInteger(value)) wrong(id, `${name} must be a whole number.`);
  }
  const guided = !$("guidance-field").hidden;
  const [width, height] = $("size").value.split("x").map(Number);
  return {
    model: chosen().id,
    prompt,
    enhanced_prompt: $("enhanced").value.trim(),
    width,
    height,
    frames: Number($("frames").value),
    seed,
    steps,
    text_scale: guided && $("guidance").value !== "" ? number("guidance", 0, 100, "Guidance") : null,
    negative_prompt: guided ? $("negative").value.trim() : "",
    adapters: strengths(),
  };
}

/** Fill settings in. Returns what this server does not offer, in words. */
export function fillForm(settings) {
  const missing = [];
  const choose = (id, value, text) => {
    if (value === undefined) return;
    if ([...$(id).options].some((option) => option.value === value)) $(id).value = value;
    else missing.push(text);
  };
  if (settings.model) {
    choose("model", settings.model, `the model ${settings.model}`);
    setOffer();
  }
  $("prompt").value = settings.prompt || "";
  $("enhanced").value = settings.enhanced_prompt || "";
  enhancedOf = $("enhanced").value ? $("prompt").value.trim() : null;
  $("negative").value = settings.negative_prompt || "";
  if (settings.width)
    choose("size", `${settings.width}x${settings.height}`, `the size ${settings.width} × ${settings.height}`);
  if (settings.frames) choose("frames", String(settings.frames), `a length of ${settings.frames} frames`);
  $("steps").value = settings.steps ?? offer().steps ?? "";
  $("guidance").value = settings.text_scale ?? offer().guidance_scale ?? "";
  if (settings.seed > MOST_SEED) missing.push("a seed as large as this clip's");
  else if (settings.seed !== undefined) {
    $("seed").value = settings.seed;
    $("seed-random").checked = false;
  }
  const wanted = settings.adapters || {};
  for (const row of $("adapter-list").children) {
    const [use, strength] = row.querySelectorAll("input");
    use.checked = use.value in wanted;
    strength.disabled = !use.checked;
    if (use.checked) strength.value = wanted[use.value];
  }
  const known = (offer().adapters || []).map(({ name }) => name);
  missing.push(
    ...Object.keys(wanted)
      .filter((name) => !known.includes(name))
      .map((name) => `the adapter ${name}`),
  );
  shapeChanged();
  promptChanged();
  return missing;
}

/** Settings of a clip that programs can ask for and this form cannot, in words. */
export function beyondForm(settings) {
  const named = Object.keys(PLAIN).filter((name) => (settings[name] ?? PLAIN[name]) !== PLAIN[name]);
  return named.map((name) => `the setting ${name}`);
}

/** The body of a request for a clip of these settings. */
export function requestBody(settings, picture) {
  const body = new FormData();
  const put = (name, value) => {
    if (value !== "" && value !== null && value !== undefined) body.append(name, value);
  };
  put("model", settings.model);
  put("prompt", settings.prompt);
  put("enhanced_prompt", settings.enhanced_prompt);
  put("negative_prompt", settings.negative_prompt);
  put("size", `${settings.width}x${settings.height}`);
  put("num_frames", settings.frames);
  put("seed", settings.seed);
  put("num_inference_steps", settings.steps);
  put("guidance_scale", settings.text_scale);
  if (Object.keys(settings.adapters).length) put("adapters", JSON.stringify(settings.adapters));
  if (picture) body.append("input_reference", picture, picture.name || "first-frame.png");
  return body;
}

/** Prepare the form: a seed, and what was written before a reload. */
export function beginForm() {
  const [prompt, enhanced] = JSON.parse(sessionStorage.getItem(DRAFT) || '["", ""]');
  $("prompt").value = prompt;
  $("enhanced").value = enhanced;
  rollSeed();
  $("model").addEventListener("change", setOffer);
  for (const id of ["size", "frames", "steps"]) $(id).addEventListener("change", shapeChanged);
  for (const id of ["prompt", "enhanced"]) $(id).addEventListener("input", promptChanged);
  $("enhanced-clear").addEventListener("click", () => {
    setEnhanced("", "");
    $("prompt").focus();
  });
  $("seed-new").addEventListener("click", rollSeed);
  $("seed").addEventListener("input", () => {
    $("seed-random").checked = false;
  });
}
