"""`python -m benchmarks.curation_speed`: what each step of cutting clips out of films costs a core.

All steps work on one film of 720p, in this process and on one thread, in turns; processor time counts, as it does not
depend on what else the machine does. Beside the figures stand the goals. `--film FILE` takes a film of one's own.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from rich.console import Console
from rich.table import Table

from mova_engine.config.curate import MOVA_CLIP, CutSettings
from mova_engine.curation.black_bars import lit_lines
from mova_engine.curation.unit_cut import _cut
from mova_engine.curation.unit_pictures import see_pictures
from mova_engine.curation.unit_sound import hear_sound, speech_in
from mova_engine.curation.units import SourceFile, Unit
from mova_engine.errors import run_cli
from mova_engine.scores.shots import ROWS, ShotFinder, colours_of_one

SECONDS, RATE = 25, 48000
SIZE = (720, 1280)


def write_film(path: Path) -> None:
    """Scenes of five seconds, textures of all sizes that glide, with grain: about 2 Mb/s at the default quality."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "24", "preset": "medium", "g": "120"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        for number in range(SECONDS // 5):
            drawn = np.random.default_rng(number)
            wide = sum(
                cv2.resize(drawn.normal(0, 40, (h, 3 * h, 3)).astype(np.float32), (SIZE[1] + 400, SIZE[0]))
                for h in (6, 24, 90)
            )
            for step in range(120):
                seen = wide[:, 3 * step : 3 * step + SIZE[1]] + drawn.normal(0, 3, (*SIZE, 1))
                frame = av.VideoFrame.from_ndarray(np.clip(seen + 120, 0, 255).astype(np.uint8), "rgb24")
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        sound = 0.05 * np.random.default_rng(0).standard_normal((1, SECONDS * RATE)).astype(np.float32)
        for at in range(0, sound.shape[1], 1024):
            piece = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[:, at : at + 1024]), "fltp", "mono")
            piece.sample_rate, piece.pts, piece.time_base = RATE, at, Fraction(1, RATE)
            container.mux(audio.encode(piece))
        container.mux(audio.encode(None))


def frames(path: Path) -> list[av.VideoFrame]:
    """All pictures of a film, decoded by a bare loop on one thread."""
    found = []
    each_frame(path, found.append)
    return found


def each_frame(path: Path, look: Callable[[av.VideoFrame], Any]) -> int:
    """Decode with a bare loop, look at each picture, and return how many there are."""
    count = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            look(frame)
            count += 1
    return count


def small(scaler: VideoReformatter, frame: av.VideoFrame) -> np.ndarray:
    """A picture of ROWS rows, as the pass makes it."""
    width = round(ROWS * frame.width / frame.height)
    return scaler.reformat(frame, width, ROWS, "rgb24", interpolation="AREA", threads=1).to_ndarray()


def processor_seconds(work: Callable[[], Any]) -> float:
    """Of one call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def measured(path: Path, rounds: int) -> list[tuple[str, float, str, str]]:
    """(step, figure, unit, goal) of each step."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    scaler, finder_film = VideoReformatter(), []
    count = each_frame(path, lambda frame: finder_film.append(small(scaler, frame)))
    keys: list[np.ndarray] = []

    def keep_keys(frame: av.VideoFrame) -> None:
        if frame.key_frame:
            keys.append(frame.reformat(format="gray").to_ndarray())

    each_frame(path, keep_keys)
    unit = Unit(SourceFile(path, path.name, "film"), "0" * 64)
    seen = see_pictures(path, Fraction(0), None, small=False)
    sound = hear_sound(path, seen.origin, Fraction(0), seen.end)
    looks = len(seen.bars)
    cut = _cut.__wrapped__(path, unit, CutSettings(), MOVA_CLIP.frames, MOVA_CLIP.fps)

    def shots() -> None:
        finder = ShotFinder(24.0)
        for picture in finder_film:
            finder.add(colours_of_one(picture))
        finder.hard_cuts()

    def bars() -> None:
        for _ in range(looks):
            lit_lines(keys[0])

    steps: dict[str, Callable[[], Any]] = {
        "decode": lambda: each_frame(path, lambda frame: None),
        "small": lambda: each_frame(path, lambda frame: small(scaler, frame)),
        "bars": bars,
        "shots": shots,
        "pictures": lambda: see_pictures(path, Fraction(0), None, small=False),
        "unit": lambda: _cut.__wrapped__(path, unit, CutSettings(), MOVA_CLIP.frames, MOVA_CLIP.fps),
    }
    if sound is not None:
        steps["sound"] = lambda: hear_sound(path, seen.origin, Fraction(0), seen.end)
        steps["speech"] = lambda: speech_in(sound)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, work in steps.items():
            times[name].append(processor_seconds(work))
    took = {name: statistics.median(values) for name, values in times.items()}
    clips = count / MOVA_CLIP.frames
    rows = [
        ("bare PyAV decoding", count / took["decode"], "pictures / CPU-s", "400"),
        ("and small pictures", count / took["small"], "pictures / CPU-s", "380"),
        ("small pictures, of the bare loop", took["decode"] / took["small"], "", "0.95"),
        ("bars, of the film's pictures", count / took["bars"], "pictures / CPU-s", "2000"),
        ("shots, decoding shared", took["shots"] / clips, "CPU-s a clip", "0.2"),
        ("all of the pictures' pass", count / took["pictures"], "pictures / CPU-s", ""),
        ("the pictures' pass, of the bare loop", took["decode"] / took["pictures"], "", ""),
        ("a whole unit", took["unit"] / clips, "CPU-s a clip of film", ""),
        ("a whole unit, of the bare loop", took["decode"] / took["unit"], "", ""),
        ("a whole unit", seen.end / took["unit"] * 24, "hours of film a core-day", ""),
    ]
    if sound is not None:
        rows += [
            ("decoding of sound", seen.end / took["sound"], "x real time", "175"),
            ("speech", seen.end / took["speech"], "x real time", "150"),
        ]
    assert cut.facts["pictures"] == count, "the pass has seen other pictures than the bare loop"
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--film", type=Path, help="a film of one's own")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.film
        if path is None:
            path = Path(folder) / "film.mp4"
            write_film(path)
        rows = measured(path, arguments.rounds)
        size = path.stat().st_size
    table = Table("step", "figure", "unit", "goal", title=f"{path.name}, {size * 8 / 1e6:.0f} Mbit")
    for step, figure, unit, goal in rows:
        table.add_row(step, f"{figure:.3g}" if figure < 100 else f"{figure:.0f}", unit, goal)
    Console().print(table)


if __name__ == "__main__":
    run_cli(main)
