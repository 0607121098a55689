"""Latents and text features on disk, addressed by content: encode once, train many times.

A clip's key is a hash of everything that its latents depend on: the file's content, where the clip begins, its shape,
the codecs' fingerprints, the precision. Nothing is ever out of date, and folders may be shared between runs. Entries
are safetensors files, written whole or not at all, with a checksum: a damaged one is reported and encoded anew.

    FOLDER/clips/ab/abcd....safetensors     video_latents, image_latents, audio_latents, heard
    FOLDER/text/ab/abcd....safetensors      text
    FOLDER/forms/abcd....json               what decides keys beside the clips themselves, see `data.cache_forms`
    FOLDER/files/ab/abcd....json            digests of large media files, valid while size and time of change stay
    FOLDER/fatal/ab/abcd....json            why a file cannot be read without ending the process that does

The trainer fills its cache itself. To do it ahead, on another machine, or on several cards or machines at once:

    mova encode --data CLIPS --checkpoint MOVA-360p --device DEVICE
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
from mova_engine.errors import MovaError, suggest
from mova_engine.files.atomic import set_aside, write_atomic
from mova_engine.files.digests import Digests
from mova_engine.memory.residency import Residency, stage
from mova_engine.ops import DTYPES

log = logging.getLogger(__name__)

# Part of every key: raised whenever decoding or the layout of entries changes.
VERSION = 2
# Bytes of text features kept in memory, as captions recur.
TEXT_MEMORY = 64 << 20
# Clips of which is asked whether they are stored in another form.
LOOKED_FOR = 16
# Clips decoded ahead of the encoder.
READ_AHEAD = 2


@dataclass(frozen=True)
class Problem:
    """A clip that cannot be used, and why, in one line that names the file."""

    entry: Entry
    reason: str


class LatentCache:
    """The cache in `folder` for clips of one shape, one set of codecs and one precision.

    dtype: "float32" or "bfloat16" (half the space; values are rounded); tensors are always handed out as float32.
    silent: what to do with clips without sound, see `read_clip`.
    video_codec: None for a cache of sound alone, which takes files without pictures and decodes none.
    residency: brings the codecs, its parts, to the device to encode; None: they are where they compute.
    Everything is encoded one clip at a time, so that an entry does not depend on its neighbours.
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
        self.folder, self.clip, self.silent = Path(folder), clip, silent
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
        """A clip's tensors, float32: video_latents, image_latents [16, t, h, w], audio_latents [128, l], text [n, d],
        and heard [1]: 1, or 0 for a clip without sound.

        image_latents encode [first frame, zeros ...] (zero is mid-grey), the condition of image-to-video. Sound alone
        has neither these nor video_latents. What is not in the cache is encoded and stored; where it cannot be stored,
        that is reported and training goes on.
        Raises MovaError, naming the file, for a clip that cannot be used.
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
        """What `get` gives, or None where that takes more than reading: for processes that must not run the codecs."""
        try:
            latents = self._load(self._clip_path(entry))
        except MovaError:
            return None
        text = self._stored_text(entry.caption)
        return None if latents is None or text is None else {**floats(latents), "text": text}

    def content(self, entry: Entry) -> str:
        """The digest of a clip's file. MovaError where it cannot be read."""
        return self._digests.of(entry.path)

    def text(self, caption: str) -> Tensor:
        """Features float32 [n, d] of a caption."""
        stored = self._stored_text(caption)
        if stored is None:
            with stage(self.residency, ENCODE_TEXT):
                features = self._encode_text(caption)
            self._try_write(self._text_path(caption), serialise({"text": features}))
            stored = self._keep_text(caption, features)
        return stored

    def empty_text(self) -> Tensor:
        """Features float32 [n, d] of the empty caption: what text dropout and guidance put in a caption's place."""
        return self.text("")

    def fill(self, entries: Sequence[Entry], progress: Callable[[int], None] = lambda done: None) -> list[Problem]:
        """Encode and store what is missing; return the clips that cannot be used. `progress` is told how many are done.

        Files are decoded ahead in threads, while this one encodes; the captions follow when all clips are done. Raises
        MovaError when the cache cannot be written.
        """
        problems, captions = [], [""]
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
                if isinstance(outcome, MovaError):
                    problems.append(Problem(entry, str(outcome)))
                else:
                    if latents is not None:
                        self._store(self._clip_path(entry), latents)
                        self._write_form()
                    captions.append(entry.caption)
                progress(done)
        if missing := [text for text in dict.fromkeys(captions) if not self._has_text(text)]:
            with stage(self.residency, ENCODE_TEXT):
                for caption in missing:
                    self._store(self._text_path(caption), {"text": self._encode_text(caption)})
        return problems

    def stored_otherwise(self, entries: Sequence[Entry]) -> str | None:
        """Whether clips that are not in the cache lie there in another form (precision, shape, ...): one line that says
        in which; None where they do not. A few of the clips are looked for.
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
                continue  # named when it is to be encoded
        return None

    def _write_form(self) -> None:
        if not self._form_is_known:
            path = form_path(self.folder, self._clip_facts)
            if not path.is_file():
                self._try_write(path, as_json(self._clip_facts))
            self._form_is_known = True

    def _read_ahead(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Clip | MovaError | None]]:
        """Each entry with its clip, why there is none, or None where the cache holds it already."""

        def read(entry: Entry) -> Clip | MovaError | None:
            try:
                # Looked for, not read: damage is found, and mended, by whoever reads it.
                if self._clip_path(entry).is_file():
                    return None
                return self._decode(entry)
            except MovaError as error:
                return error

        with ThreadPoolExecutor(READ_AHEAD) as pool:
            pending: list[tuple[Entry, Future]] = []
            upcoming = iter(entries)
            while True:
                # Few at a time: decoded clips are large.
                for entry in islice(upcoming, READ_AHEAD + 1 - len(pending)):
                    pending.append((entry, pool.submit(read, entry)))
                if not pending:
                    return
                entry, future = pending.pop(0)
                yield entry, future.result()

    def _decode(self, entry: Entry) -> Clip:
        """The clip. That a file ends the process which reads it is kept, so that not each start pays for it again."""
        pictures = self.video_codec is not None
        content = self._digests.of(entry.path)
        facts = {"content": content, "start": entry.start, "pictures": pictures, "av": av.__version__}
        known = self._path("fatal", facts).with_suffix(".json")
        try:
            reason = json.loads(known.read_bytes())["reason"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        else:
            raise MovaError(f"{entry.path}: {reason} (so an earlier run found; to try again delete {known})")
        try:
            return read_clip(entry.path, self.clip, start=entry.start, silent=self.silent, pictures=pictures)
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
                raise MovaError(f"{entry.path}: its {name} come out not finite")
        latents["heard"] = torch.tensor([[float(clip.heard)]])
        return {name: x[0].to("cpu", self.dtype).contiguous() for name, x in latents.items()}

    def _encode_text(self, caption: str) -> Tensor:
        features = self.text_encoder.encode([caption])[0].to("cpu", self.dtype)
        # Rows past the text are zero, and most rows are: they are not stored.
        rows = int(features.ne(0).any(dim=1).nonzero().max()) + 1 if features.any() else 0
        return features[:rows].contiguous()

    def _stored_text(self, caption: str) -> Tensor | None:
        if caption in self._texts:
            return self._texts[caption]
        stored = self._load(self._text_path(caption))
        return None if stored is None else self._keep_text(caption, stored["text"])

    def _keep_text(self, caption: str, features: Tensor) -> Tensor:
        """Fill up with the zero rows that are not stored; keep the features in memory while few are."""
        text = pad(features.float(), (0, 0, 0, self.text_encoder.max_tokens - len(features)))
        if len(self._texts) * text.numel() * text.element_size() < TEXT_MEMORY:
            self._texts[caption] = text
        return text

    def _has_text(self, caption: str) -> bool:
        return caption in self._texts or self._text_path(caption).is_file()

    def _clip_path(self, entry: Entry, form: Form | None = None) -> Path:
        facts = self._clip_facts if form is None else form
        return self._path("clips", {**facts, "content": self._digests.of(entry.path), "start": entry.start})

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
        """Store what can be had again; the first failure is reported."""
        try:
            self._put(path, data)
        except MovaError as error:
            if self._writable:
                log.warning("%s; going on without storing what is missing from the cache", error)
            self._writable = False

    def _put(self, path: Path, data: bytes) -> None:
        """Write a file of the cache. What is there and is none is not lost: it gets another name."""
        try:
            if os.path.lexists(path) and not is_entry(path):
                log.warning("%s is no entry of a cache, and is now %s", path, set_aside(path).name)
        except OSError as error:
            raise MovaError(f"cannot write {path}: {error.strerror or error}") from None
        write_atomic(path, data, sync=False)
