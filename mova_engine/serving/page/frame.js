// The first frame: chosen, dropped or pasted, and shown cropped to the clip's size as the model will see it.

import { $, write } from "./dom.js";

const NONE = "Without one the clip starts from white.";
// Side of the longest edge of the frame's place, in CSS pixels.
const LONGEST = 232;
let picture = null;
let seen = null;
let size = { width: 16, height: 9 };

/** The picture as a File or Blob, or null. */
export const firstFrame = () => picture;

/** Show in the shape of a clip of so many pixels. */
export function cropTo(width, height) {
  size = { width, height };
  const scale = LONGEST / Math.max(width, height);
  $("crop").style.width = `${Math.round(width * scale)}px`;
  $("crop").style.aspectRatio = `${width} / ${height}`;
  describe();
}

/** Take a picture, or none. most: bytes that the server takes. Throws an Error with words where it is none. */
export async function takeFrame(file, most = Infinity) {
  if (file && file.size > most) {
    throw new Error(
      `The picture has ${megabytes(file.size)}; this server takes up to ${megabytes(most)}. Choose a smaller one.`,
    );
  }
  const shown = $("frame-picture");
  const before = shown.src;
  if (file) {
    const address = URL.createObjectURL(file);
    const trial = new Image();
    trial.src = address;
    try {
      await trial.decode();
    } catch {
      URL.revokeObjectURL(address);
      throw new Error(
        `${file.name || "This file"} is not a picture that this browser can show. Take a PNG, JPEG or WebP.`,
      );
    }
    seen = { width: trial.naturalWidth, height: trial.naturalHeight };
    shown.src = address;
  } else shown.removeAttribute("src");
  if (before) URL.revokeObjectURL(before);
  picture = file;
  shown.hidden = !file;
  $("frame-hint").hidden = Boolean(file);
  $("frame-remove").hidden = !file;
  if (!file) $("frame-file").value = "";
  describe();
}

function megabytes(bytes) {
  return `${Number((bytes / 1e6).toFixed(1))} MB`;
}

/** Say what of the picture is cut away. */
function describe() {
  if (!picture) {
    write($("frame-about"), NONE);
    return;
  }
  const [width, height] = [seen.width, seen.height];
  const share = width / height / (size.width / size.height);
  const cut = Math.round(100 * (1 - Math.min(share, 1 / share)));
  const where = share > 1 ? "left and right" : "top and bottom";
  write($("frame-about"), `${width} × ${height}${cut ? `; ${cut} % cut at ${where}` : ", shown whole"}`);
}
