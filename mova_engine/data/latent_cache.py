"""The latent cache: latents and text features on disk, addressed by content. Clips are encoded once for many runs.

An entry's key is a hash of everything that its latents depend on: the file's content, the clip's start, edit and shape,
the fingerprints of the codecs, the precision. Entries are therefore never out of date, and runs may share a folder.
Entries are safetensors files that are written atomically, with a checksum. A damaged entry is reported and encoded
again.

    FOLDER/clips/ab/abcd....safetensors     video_latents, image_latents, audio_latents, heard
    FOLDER/text/ab/abcd....safetensors      text
    FOLDER/forms/abcd....json               settings that are part of the keys, see `data.cache_forms`
    FOLDER/files/ab/abcd....json            digests of large media files, valid while their size and mtime stay
    FOLDER/fatal/ab/abcd....json            why reading a file ends the process that reads it

The trainer fills its cache itself. To fill it ahead, on another machine, or on several devices or machines at once:

    mova encode --data CLIPS --checkpoint MOVA-360p --device DEVICE
    mova encode --data CLIPS --checkpoint MOVA-360p --device cpu --workers 4
    torchrun --nproc-per-node 8 -m mova_engine encode --data CLIPS --checkpoint MOVA-360p --device DEVICE
    mova encode --data CLIPS --checkpoint MOVA-360p --device DEVICE --shard 3/8
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import av
import torch
from torch import Tensor
from torch.nn.functional import pad

from mova_engine.codecs import (
    AudioCodec,
    TextEncoder,
    VideoCodec,
    video_from_uint8,
)
from mova_engine.config.model import ClipConfig
from mova_engine.config.stages import ENCODE_CLIPS, ENCODE_TEXT
from mova_engine.data.cache_entries import floats, is_entry, read_entry, serialise
from mova_engine.data.cache_forms import Form, as_json, as_stored, difference, form_path, other_forms
from mova_engine.data.media.decode import Clip, Silent, read_clip
from mova_engine.data.media.reader_process import FatalFileError
from mova_engine.data.metadata import Entry
from mova_engine.data.shard_files import FileInShard
from mova_engine.errors import MovaError, suggest
from mova_engine.files.atomic import set_aside, write_atomic
from mova_engine.files.byte_ranges import UnreachableError, end_retries
from mova_engine.files.digests import Digests
from mova_engine.memory.residency import Residency, stage
from mova_engine.ops import DTYPES

log = logging.getLogger(__name__)

# Part of every key: increased whenever decoding or the layout of entries changes.
VERSION = 2
# Bytes of text features kept in memory: captions recur.
TEXT_MEMORY = 64 << 20
# How many clips `stored_otherwise` looks for.
LOOKED_FOR = 16
# Clips decoded ahead of the encoder.
READ_AHEAD = 2


@dataclass(frozen=True)
class Problem:
    """A clip that cannot be used. reason: one line that names the file."""

    entry: Entry
    reason: str


class LatentCache:
    """The cache in `folder` for clips of one shape, one set of codecs and one precision.

    dtype: "float32" or "bfloat16" (half the disk space; values are rounded). Tensors are always returned as float32.
    silent: how to treat clips without sound, see `read_clip`.
    video_codec: None for a cache of audio only, for files with or without video, whose pictures are not decoded.
    residency: moves the codecs to the device for encoding; None: they are there.
    Clips are encoded one at a time, so that an entry does not depend on other clips.
    Raises MovaError for an unknown dtype, and if `folder` is a file.
    """

    def __init__(
        self,
        folder: str | Path,
        clip: ClipConfig,
        video_codec: VideoCodec | None,
        audio_codec: AudioCodec,
        text_encoder: TextEncoder,
        *,
        dtype: str = "float32",
        silent: Silent = "refuse",
        residency: Residency | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise MovaError(f"unknown cache dtype '{dtype}'.{suggest(dtype, DTYPES)} Known: {', '.join(DTYPES)}")
        if Path(folder).exists() and not Path(folder).is_dir():
            raise MovaError(f"{folder}: a file, not a folder for encoded clips; --loader.cache FOLDER names one")
        self.folder, self.clip = Path(folder), clip
        self.silent: Silent = silent
        self.video_codec, self.audio_codec, self.text_encoder = video_codec, audio_codec, text_encoder
        self.dtype, self.residency = DTYPES[dtype], residency
        common = {"version": VERSION, "dtype": dtype}
        shown = {"sound": [clip.audio_samples, clip.sample_rate]}
        if video_codec is not None:
            shown = {"video": video_codec.fingerprint(), "clip": asdict(clip)}
        self._clip_facts = as_stored({**common, **shown, "audio": audio_codec.fingerprint(), "silent": silent})
        self._text_facts = {**common, "encoder": text_encoder.fingerprint()}
        self._digests = Digests(self.folder / "files", self._try_write)
        self._texts: dict[str, Tensor] = {}
        self._writable = True
        self._form_is_known = False

    def get(self, entry: Entry) -> dict[str, Tensor]:
        """Return a clip's tensors, float32: video_latents, image_latents [16, t, h, w], audio_latents [128, l],
        text [n, d], and heard [1]: 1, or 0 for a clip without sound.

        image_latents are the encoding of [first frame, zeros ...] (zero is mid-grey), the condition of image-to-video.
        An audio-only cache has neither these nor video_latents. A clip that is not in the cache is encoded and stored;
        if storing fails, a warning is logged. Raises MovaError, naming the file, for a clip that cannot be used.
        """
        path = self._clip_path(entry)
        latents = self._load(path)
        if latents is None:
            clip = self._decode(entry)
            with stage(self.residency, ENCODE_CLIPS):
                latents = self._encode(entry, clip)
            self._try_write(path, serialise(latents))
            self._write_form()
        return {**floats(latents), "text": self.text(entry.caption)}

    def read(self, entry: Entry) -> dict[str, Tensor] | None:
        """As `get`, but None if the clip is not in the cache; for processes that must not run the codecs."""
        try:
            latents = self._load(self._clip_path(entry))
        except MovaError:
            return None
        text = self._stored_text(entry.caption)
        return None if latents is None or text is None else {**floats(latents), "text": text}

    def holds(self, entry: Entry) -> bool:
        """Whether a clip is in the cache, so that its shard is not needed. A file of its own is read for that; raises
        MovaError if it cannot be.
        """
        return self._clip_path(entry).is_file()

    def content(self, entry: Entry) -> str:
        """The digest of a clip's file. Raises MovaError if it cannot be read."""
        return entry.path.sha256 if isinstance(entry.path, FileInShard) else self._digests.of(entry.path)

    def text(self, caption: str) -> Tensor:
        """Return the features float32 [n, d] of a caption; encodes and stores them if they are not in the cache."""
        stored = self._stored_text(caption)
        if stored is None:
            with stage(self.residency, ENCODE_TEXT):
                features = self._encode_text(caption)
            self._try_write(self._text_path(caption), serialise({"text": features}))
            stored = self._keep_text(caption, features)
        return stored

    def empty_text(self) -> Tensor:
        """Return the features float32 [n, d] of the empty caption, which text dropout and guidance use."""
        return self.text("")

    def fill(self, entries: Sequence[Entry], progress: Callable[[int], None] = lambda done: None) -> list[Problem]:
        """Encode and store the clips that are missing, then their captions; return the clips that cannot be used.

        Files are decoded ahead in threads while this thread encodes. progress: called with the number of clips done.
        Raises MovaError if the cache cannot be written, and UnreachableError if the clips' place does not answer, which
        says nothing about the clips.
        """
        problems, missing = [], {"": None}
        with ExitStack() as encoding:
            began = False
            for done, (entry, outcome) in enumerate(self._read_ahead(entries), start=1):
                if isinstance(outcome, Clip) and not began:
                    encoding.enter_context(stage(self.residency, ENCODE_CLIPS))
                    began = True
                try:
                    latents = self._encode(entry, outcome) if isinstance(outcome, Clip) else None
                except MovaError as error:
                    outcome = error
                if isinstance(outcome, UnreachableError):
                    raise outcome
                if isinstance(outcome, MovaError):
                    problems.append(Problem(entry, str(outcome)))
                else:
                    if latents is not None:
                        self._store(self._clip_path(entry), latents)
                        self._write_form()
                    if not self._has_text(entry.caption):
                        missing[entry.caption] = None
                progress(done)
        if captions := [text for text in missing if not self._has_text(text)]:
            with stage(self.residency, ENCODE_TEXT):
                for caption in captions:
                    self._store(self._text_path(caption), {"text": self._encode_text(caption)})
        return problems

    def stored_otherwise(self, entries: Sequence[Entry]) -> str | None:
        """If some of `entries` are in the cache in another form only (precision, shape, ...), return one line that says
        in which; else None. Looks for a sample of LOOKED_FOR clips.
        """
        others = other_forms(self.folder, self._clip_facts)
        for entry in entries[:: max(1, len(entries) // LOOKED_FOR)] if others else ():
            try:
                if self._clip_path(entry).is_file():
                    continue
                for form in others:
                    if self._clip_path(entry, form).is_file():
                        return f"{self.folder} holds these clips in another form: {difference(form, self._clip_facts)}"
            except MovaError:
                continue  # reported when the clip is encoded
        return None

    def _write_form(self) -> None:
        if not self._form_is_known:
            path = form_path(self.folder, self._clip_facts)
            if not path.is_file():
                self._try_write(path, as_json(self._clip_facts))
            self._form_is_known = True

    def _read_ahead(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Clip | MovaError | None]]:
        """Yield each entry with its decoded clip, or the error, or None if the clip is in the cache already."""

        # Once a place did not answer, clips that wait for a thread must not spend as much time again.
        unreached = list[UnreachableError]()

        def read(entry: Entry) -> Clip | MovaError | None:
            if unreached:
                return unreached[0]
            try:
                # The entry is not read here: damage is detected, and the clip encoded again, when it is used.
                if self._clip_path(entry).is_file():
                    return None
                return self._decode(entry)
            except UnreachableError as error:
                unreached.append(error)
                return error
            except MovaError as error:
                return error

        with ThreadPoolExecutor(READ_AHEAD) as pool:
            pending: list[tuple[Entry, Future]] = []
            upcoming = iter(entries)
            try:
                while True:
                    # Decoded clips are large: only a few are decoded ahead.
                    for entry in islice(upcoming, READ_AHEAD + 1 - len(pending)):
                        pending.append((entry, pool.submit(read, entry)))
                    if not pending:
                        return
                    entry, future = pending.pop(0)
                    yield entry, future.result()
            finally:
                end_retries()
                pool.shutdown(cancel_futures=True)

    def _decode(self, entry: Entry) -> Clip:
        """Decode the clip. If reading the file ends its process, that is recorded, and later runs do not try again."""
        pictures = self.video_codec is not None
        facts = {**self._of_entry(entry), "pictures": pictures, "av": av.__version__}
        known = self._path("fatal", facts).with_suffix(".json")
        try:
            reason = json.loads(known.read_bytes())["reason"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        else:
            raise MovaError(f"{entry.path}: {reason} (so an earlier run found; to try again delete {known})")
        try:
            return read_clip(
                entry.path, self.clip, start=entry.start, silent=self.silent, pictures=pictures, edit=entry.edit
            )
        except FatalFileError as error:
            self._try_write(known, json.dumps({"reason": error.reason}).encode())
            raise

    def _encode(self, entry: Entry, clip: Clip) -> dict[str, Tensor]:
        latents = {"audio_latents": self.audio_codec.encode(torch.from_numpy(clip.audio).view(1, 1, -1))}
        if self.video_codec is not None:
            video = video_from_uint8(torch.from_numpy(clip.video)).unsqueeze(0)
            first_frame = torch.zeros_like(video)
            first_frame[:, :, 0] = video[:, :, 0]
            latents["video_latents"] = self.video_codec.encode(video)
            latents["image_latents"] = self.video_codec.encode(first_frame)
        for name, x in latents.items():
            if not x.isfinite().all():
                raise MovaError(f"{entry.path}: its {name} are not finite")
        latents["heard"] = torch.tensor([[float(clip.heard)]])
        return {name: x[0].to("cpu", self.dtype).contiguous() for name, x in latents.items()}

    def _encode_text(self, caption: str) -> Tensor:
        features = self.text_encoder.encode([caption])[0].to("cpu", self.dtype)
        # The rows after the end of the text are zero and not stored.
        rows = int(features.ne(0).any(dim=1).nonzero().max()) + 1 if features.any() else 0
        return features[:rows].contiguous()

    def _stored_text(self, caption: str) -> Tensor | None:
        if caption in self._texts:
            return self._texts[caption]
        stored = self._load(self._text_path(caption))
        return None if stored is None else self._keep_text(caption, stored["text"])

    def _keep_text(self, caption: str, features: Tensor) -> Tensor:
        """Append the zero rows that are not stored; keep the features in memory up to TEXT_MEMORY."""
        text = pad(features.float(), (0, 0, 0, self.text_encoder.max_tokens - len(features)))
        if len(self._texts) * text.numel() * text.element_size() < TEXT_MEMORY:
            self._texts[caption] = text
        return text

    def _has_text(self, caption: str) -> bool:
        return caption in self._texts or self._text_path(caption).is_file()

    def _clip_path(self, entry: Entry, form: Form | None = None) -> Path:
        facts = self._clip_facts if form is None else form
        return self._path("clips", {**facts, **self._of_entry(entry)})

    def _of_entry(self, entry: Entry) -> dict[str, object]:
        """What a clip's place depends on of its row. Without an edit it is what it was before there were any."""
        edit = {"edit": entry.edit.facts} if entry.edit else {}
        return {"content": self.content(entry), "start": entry.start, **edit}

    def _text_path(self, caption: str) -> Path:
        return self._path("text", {**self._text_facts, "caption": caption})

    def _path(self, kind: str, facts: Mapping[str, object]) -> Path:
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return self.folder / kind / key[:2] / f"{key}.safetensors"

    def _load(self, path: Path) -> dict[str, Tensor] | None:
        """An entry's tensors; None where there is none, or a damaged one, which is reported."""
        if not path.is_file():
            return None
        tensors, reason = read_entry(path)
        if tensors is None:
            log.warning("cache entry %s is damaged (%s): encoding it anew", path, reason)
        return tensors

    def _store(self, path: Path, tensors: dict[str, Tensor]) -> None:
        # An entry that a loss of power spoils is found by its checksum.
        try:
            self._put(path, serialise(tensors))
        except MovaError as error:
            raise MovaError(f"{error}; --loader.cache FOLDER (mova encode: --out) keeps clips elsewhere") from None

    def _try_write(self, path: Path, data: bytes) -> None:
        """Write a file that can be made again. The first failure is logged."""
        try:
            self._put(path, data)
        except MovaError as error:
            if self._writable:
                log.warning("%s; continuing without storing missing entries in the cache", error)
            self._writable = False

    def _put(self, path: Path, data: bytes) -> None:
        """Write a file of the cache. If the name is taken by a file that is no cache entry, that file is renamed."""
        try:
            if os.path.lexists(path) and not is_entry(path):
                log.warning("%s is no entry of a cache, and is now %s", path, set_aside(path).name)
        except OSError as error:
            raise MovaError(f"cannot write {path}: {error.strerror or error}") from None
        write_atomic(path, data, sync=False)
