// Settings of a clip as a file that can be shared: written and read here, with the first frame inside.

const KIND = "mova settings";
const VERSION = 1;
// What a file may hold, and of which type.
const FIELDS = {
  model: "string",
  prompt: "string",
  enhanced_prompt: "string",
  negative_prompt: "string",
  width: "number",
  height: "number",
  frames: "number",
  seed: "number",
  steps: "number",
  text_scale: "number",
  adapters: "object",
};

async function asDataAddress(blob) {
  const reader = new FileReader();
  const done = new Promise((resolve, reject) => {
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
  });
  reader.readAsDataURL(blob);
  return done;
}

function fromDataAddress(address) {
  const parts = /^data:(image\/[\w.+-]+);base64,([A-Za-z0-9+/=]+)$/.exec(address);
  if (!parts) throw new Error("The first frame in this file is damaged. Ask for the file again.");
  const bytes = Uint8Array.from(atob(parts[2]), (letter) => letter.charCodeAt(0));
  return new File([bytes], "first frame", { type: parts[1] });
}

/** A file of these settings. picture: Blob or null. */
export async function writeSettings(settings, picture) {
  const whole = {
    kind: KIND,
    version: VERSION,
    ...settings,
    first_frame: picture ? await asDataAddress(picture) : null,
  };
  return new Blob([`${JSON.stringify(whole, null, 2)}\n`], { type: "application/json" });
}

/** {settings, picture, unknown}: what a file holds; picture: File or null; unknown: names that mean nothing here. */
export async function readSettings(file) {
  let found;
  try {
    found = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} is not a file of settings: it holds no JSON. Open one that was saved by this page.`);
  }
  if (found?.kind !== KIND)
    throw new Error(`${file.name} is not a file of settings. Open one that was saved by this page.`);
  if (found.version !== VERSION)
    throw new Error(`${file.name} was saved by another version of this page (${found.version}).`);
  const { kind, version, first_frame: frame, ...rest } = found;
  const settings = {};
  const unknown = [];
  for (const [name, value] of Object.entries(rest)) {
    if (!(name in FIELDS)) {
      unknown.push(name);
      continue;
    }
    if (value === null) continue;
    if (typeof value !== FIELDS[name] || Array.isArray(value)) {
      throw new Error(`${file.name}: ${name} is not a ${FIELDS[name]}. Open a file that was saved by this page.`);
    }
    settings[name] = value;
  }
  return { settings, picture: frame ? fromDataAddress(frame) : null, unknown };
}

/** Hand a file to the user as a download. */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
