// The sound of a clip as a picture: mirrored bars, what was played in another colour. A click goes to that time.

const BAR = 3;
const GAP = 2;

/** Draws on a canvas beside a video. */
export class Waveform {
  constructor(canvas, player) {
    Object.assign(this, { canvas, player, peaks: null, frame: 0 });
    const redraw = () => this.#soon();
    new ResizeObserver(redraw).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    for (const name of ["timeupdate", "seeked", "play", "loadedmetadata"]) player.addEventListener(name, redraw);
    canvas.addEventListener("click", (event) => {
      if (player.duration) player.currentTime = (event.offsetX / canvas.clientWidth) * player.duration;
    });
  }

  /** peaks: the largest |sample| of each of equal parts, 0 to 1; null: none (yet). */
  show(peaks) {
    this.peaks = peaks;
    this.#soon();
  }

  #soon() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    const { canvas, peaks, player } = this;
    const { clientWidth: width, clientHeight: height } = canvas;
    const scale = devicePixelRatio;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    if (!width) return;
    const style = getComputedStyle(canvas);
    const [played, ahead] = [style.getPropertyValue("--strong"), style.getPropertyValue("--edge")];
    const bars = Math.floor((width + GAP) / (BAR + GAP));
    const share = player.duration ? player.currentTime / player.duration : 0;
    // Quiet clips are to be seen too: bars are relative to the loudest, unless all is near silence.
    const loudest = Math.max(0.02, ...(peaks || []));
    for (let bar = 0; bar < bars; bar += 1) {
      const level = peaks ? peakOf(peaks, bar / bars, (bar + 1) / bars) / loudest : 0;
      const length = Math.max(2, level * (height - 4));
      context.fillStyle = (bar + 0.5) / bars <= share ? played : ahead;
      context.fillRect(bar * (BAR + GAP), (height - length) / 2, BAR, length);
    }
  }
}

function peakOf(peaks, from, to) {
  const first = Math.min(peaks.length - 1, Math.floor(from * peaks.length));
  return Math.max(...peaks.slice(first, Math.max(first + 1, Math.ceil(to * peaks.length))));
}
