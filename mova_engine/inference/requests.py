"""Reads prompts, pictures and folders of clips, and makes the pipeline's requests from them."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from mova_engine.config.adapter_spec import Strength
from mova_engine.config.model import ClipConfig
from mova_engine.data.clip_edit import NO_EDIT, ClipEdit
from mova_engine.data.media.decode import probe, read_clip
from mova_engine.data.media.stills import is_picture, read_image
from mova_engine.data.metadata import FILES, MediaFile, read_metadata
from mova_engine.data.text import flaw, read_text, shown
from mova_engine.errors import MovaError, counted
from mova_engine.inference.given_clip import GivenClip, Kept

# A larger count is most likely a typing error, and the list of requests would fill the host's memory.
MOST_REQUESTS = 1_000_000
# torch.Generator takes 64 bits.
MAX_SEED = 2**63 - 1
# Switches of a line of prompts, in the form of musubi-tuner's prompt files.
_SWITCH = re.compile(r"(?:^|\s)--(\w+)(?=\s|$)")
_NOT_OF_A_LINE = {
    "w": "width", "h": "height", "f": "frames", "s": "steps", "g": "guidance", "l": "guidance", "fs": "shift",
    "n": "negative prompt", "cn": "control video", "ci": "control image",
}  # fmt: skip
log = logging.getLogger(__name__)

# Strengths of adapters by name: for all clips, or a list with those of each.
OfClips = Mapping[str, Strength] | Sequence[Mapping[str, Strength] | None] | None


@dataclass(frozen=True)
class Request:
    """A clip to generate. first_frame, last_frame: uint8 [h, w, 3], resized and cropped as training clips are.

    adapters: strengths of the pipeline's adapters for this clip, by name (`ActiveAdapters.set`); None: those set there.
    first_frame None: the model gets a white frame, by which it was trained to generate from the text only. The noise is
    determined by `seed`. given: what of the clip is given: its pictures, its sound, or all but a window; the first
    frame is then that of the given pictures. keyframes: other pictures that are given, by their index. Raises
    MovaError for arguments of a wrong type or value.
    """

    caption: str
    seed: int = 0
    first_frame: np.ndarray | None = None
    last_frame: np.ndarray | None = None
    given: GivenClip | None = None
    adapters: Mapping[str, Strength] | None = None
    keyframes: tuple[tuple[int, np.ndarray], ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise MovaError(f"seed must lie between 0 and {MAX_SEED}, got {self.seed}")
        if not isinstance(self.caption, str):
            raise MovaError(f"a prompt must be a text, got {type(self.caption).__name__}")
        if reason := flaw(self.caption):
            raise MovaError(f"prompt '{shown(self.caption)}' {reason}")
        named = {"first_frame": self.first_frame, "last_frame": self.last_frame}
        for name, frame in (*named.items(), *((f"keyframe {index}", frame) for index, frame in self.keyframes)):
            if frame is not None and not _is_frame(frame):
                # Floats from 0 to 1 would give a nearly black picture.
                raise MovaError(f"{name} must be a picture as uint8 [height, width, 3], got {_kind(frame)}")


def _is_frame(frame: object) -> bool:
    return isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.shape[2:] == (3,) and frame.size > 0


def _kind(frame: object) -> str:
    return f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__


@dataclass(frozen=True)
class Prompt:
    """A caption, the first frame (uint8 [h, w, 3]; None: white), the frame's source, for the output's metadata, and
    what is given of the clip.

    seed: its own; None: one is counted up. file: the first frame's, where that is a file of its own, and `start`, the
    time of the frame in it, in seconds.
    """

    caption: str
    first_frame: np.ndarray | None = None
    source: str | None = None
    seed: int | None = None
    given: GivenClip | None = None
    file: Path | None = None
    start: float = 0.0


def strengths_of(prompts: Sequence[str], adapters: OfClips) -> list[Mapping[str, Strength] | None]:
    """The adapters of each prompt. MovaError for a list of another length."""
    if adapters is None or isinstance(adapters, Mapping):
        return [adapters] * len(prompts)
    if len(adapters) != len(prompts):
        raise MovaError(
            f"adapters are given for {counted(len(adapters), 'clip')}, of {counted(len(prompts), 'prompt')}"
        )
    return list(adapters)


def read_frame(path: str | MediaFile, clip: ClipConfig, start: float = 0.0, edit: ClipEdit = NO_EDIT) -> np.ndarray:
    """Read a picture file, or the frame of a video file at `start` seconds; uint8 [height, width, 3] of `clip`.

    The content of the file decides between the two; with a `start` or an edit it is a video. Raises MovaError if the
    file is missing or cannot be read.
    """
    if not start and not edit and is_picture(path):
        return read_image(path, clip.height, clip.width)
    try:
        probe(path)
    except MovaError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise MovaError(f"{path}: not a readable picture, nor a video: {reason}") from None
    return read_clip(path, replace(clip, frames=1), start=start, silent="zeros", edit=edit).pictures[0]


def read_prompts(
    path: str | Path, clip: ClipConfig, given: tuple[Kept, Kept] = ("none", "none"), frames: bool = True
) -> list[Prompt]:
    """Read prompts from a folder of clips (caption and first frame of each) or a .txt file (a prompt per line, as
    `prompts_of_lines` has them). given: what is kept of each clip's pictures and sound. frames=False: of a folder the
    captions alone, whatever its files are. Raises MovaError if there are none, or if a file is missing or unreadable.
    """
    path = Path(path)
    if path.name in FILES:
        path = path.parent
    if path.is_dir() and not frames:
        return [Prompt(entry.caption, source=entry.id) for entry in read_metadata(path)]
    if path.is_dir():
        return _prompts_of_clips(path, clip, given)
    if given != ("none", "none"):
        raise MovaError(f"{path}: a list of prompts gives neither pictures nor sound: give a folder of clips")
    if path.suffix.lower() != ".txt":
        raise MovaError(f"{path}: prompts are a folder of clips, or a .txt file with one prompt a line")
    # Lines end at a line feed only: a prompt may hold other separators.
    prompts = prompts_of_lines(read_text(path).split("\n"), clip, str(path), path.parent)
    if not prompts:
        raise MovaError(f"{path}: holds no prompts")
    return prompts


def prompts_of_lines(lines: Sequence[str], clip: ClipConfig, source: str, folder: Path) -> list[Prompt]:
    """Prompts from lines: a caption, then `--i FILE`, a first frame (default: white), and `--d SEED`.

    These are lines of musubi-tuner's prompt files. Its switches for size, steps and guidance, which are the same for
    all prompts here, are left out with a warning. Empty lines and lines that begin with # are left out. source: the
    lines' origin, for errors. folder: what paths are relative to. Raises MovaError for an unknown switch, a seed that
    is no number, and a frame that cannot be read.
    """
    prompts, unused = list[Prompt](), dict[str, str]()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        caption, *pairs = (part.strip() for part in _SWITCH.split(line))
        given = dict(zip(pairs[::2], pairs[1::2], strict=True))
        where = f"{source}, prompt {number}"
        for name in given:
            if name in _NOT_OF_A_LINE:
                unused[f"--{name}"] = _NOT_OF_A_LINE[name]
            elif name not in ("i", "d"):
                raise MovaError(f"{where}: unknown switch --{name}; known are --i FILE, a first frame, and --d SEED")
        seed = given.get("d")
        if seed is not None and not re.fullmatch(r"\d+", seed):
            raise MovaError(f"{where}: --d takes a seed, a whole number, got '{seed}'")
        frame = read_frame(folder / given["i"], clip) if "i" in given else None
        file = folder / given["i"] if "i" in given else None
        prompts.append(Prompt(caption, frame, given.get("i"), None if seed is None else int(seed), file=file))
    if unused:
        what = ", ".join(sorted(set(unused.values())))
        log.warning("%s: %s of a line are not used: %s are the same for all prompts", source, ", ".join(unused), what)
    return prompts


def _prompts_of_clips(folder: Path, clip: ClipConfig, given: tuple[Kept, Kept]) -> list[Prompt]:
    """Caption and first frame of each clip that can be read. The others are logged as warnings, as in training."""
    prompts, entries, reason = [], read_metadata(folder), ""
    for entry in entries:
        try:
            kept = None
            if given != ("none", "none"):
                if not isinstance(entry.path, Path):
                    raise MovaError(f"{entry.path}: what is given of a clip must be a file of its own, not in a shard")
                if entry.edit:
                    raise MovaError(
                        f"{entry.path}: what is given of a clip is taken as its file has it, and the list states "
                        f"{', '.join(entry.edit.facts)}: list a file that is written so (mova curate --write mp4)"
                    )
                kept = GivenClip(entry.path, *given, entry.start)
                kept.check(clip)
            frame = read_frame(entry.path, clip, entry.start, entry.edit)
            # What is stated of a file is its path and start, which do not give an edited picture again.
            file = entry.path if isinstance(entry.path, Path) and not entry.edit else None
            prompts.append(Prompt(entry.caption, frame, entry.id, given=kept, file=file, start=entry.start))
        except MovaError as error:
            log.warning("clip '%s' gives no prompt: %s", entry.id, error)
            reason = str(error)
    if not prompts:
        raise MovaError(f"{folder}: none of {counted(len(entries), 'clip')} can be read: {reason}")
    return prompts


def make_requests(
    prompts: Sequence[Prompt],
    count: int,
    seed: int,
    last_frame: np.ndarray | None = None,
    keyframes: tuple[tuple[int, np.ndarray], ...] = (),
) -> list[tuple[Prompt, Request]]:
    """Make `count` requests, repeating the prompts cyclically. Request i has seed `seed + i`, or its prompt's own, to
    which the number of its earlier rounds is added.
    """
    if not 1 <= count <= MOST_REQUESTS:
        raise MovaError(f"count must lie between 1 and {MOST_REQUESTS}, got {count}")
    return [
        (
            prompt,
            Request(
                prompt.caption,
                _seed(prompt, seed + i, i // len(prompts)),
                prompt.first_frame,
                last_frame,
                prompt.given,
                keyframes=keyframes,
            ),
        )
        for i, prompt in enumerate(islice(cycle(prompts), count))
    ]


def _seed(prompt: Prompt, counted_up: int, rounds: int) -> int:
    return counted_up if prompt.seed is None else prompt.seed + rounds


def read_keyframes(named: Sequence[str], clip: ClipConfig) -> tuple[tuple[int, np.ndarray], ...]:
    """Keyframes as typed, `FILE:SECONDS`: (index of the picture, pixels). MovaError for a time that is not within the
    clip's pictures after the first, or that is taken.
    """
    found: dict[int, np.ndarray] = {}
    for text in named:
        path, _, seconds = text.rpartition(":")
        try:
            index = round(float(seconds) * clip.fps)
        except (ValueError, OverflowError):
            raise MovaError(f"--keyframe {text}: FILE:SECONDS is wanted, such as train.png:2.5") from None
        last = clip.frames - 1
        if not path or not 0 < index <= last:
            raise MovaError(
                f"--keyframe {text}: FILE:SECONDS is wanted, of a picture from {1 / clip.fps:.3f} to "
                f"{last / clip.fps:.3f} s; --image gives the first"
            )
        if index in found:
            raise MovaError(f"--keyframe {text}: there is a keyframe at this picture already")
        found[index] = read_frame(path, clip)
    return tuple(sorted(found.items(), key=lambda pair: pair[0]))
