"""Manifests of a sampling run's clips, and signatures of their files."""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mova_engine.adapters.reading import require_adapter
from mova_engine.backend import Backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.checkpoints.codec_entries import class_of
from mova_engine.checkpoints.locate import find_adapters
from mova_engine.checkpoints.released import INDEX
from mova_engine.config.adapter_spec import AdapterSpec
from mova_engine.config.command import to_plain
from mova_engine.config.sample import SampleConfig
from mova_engine.data.media.clip_manifest import ClipManifest, file_facts, stated_facts
from mova_engine.data.media.provenance import require_signing, signed
from mova_engine.data.media.signed_formats import HEAD, format_of
from mova_engine.data.media.signer import Signer
from mova_engine.errors import MovaError
from mova_engine.files.atomic import write_atomic
from mova_engine.files.digests import Digests
from mova_engine.files.tensors import read_json
from mova_engine.files.user_folders import cache_folder
from mova_engine.inference.command_settings import cache_file
from mova_engine.inference.requests import Prompt, Request
from mova_engine.inference.sampling_job import SamplingJob
from mova_engine.memory.chosen_memory import ChosenMemory

# Settings that are a clip's own, or say where it goes; the rest is the run's.
_OF_A_CLIP = (
    "prompt", "prompts", "count", "seed", "image", "video", "audio", "given", "start", "out", "overwrite",
    "no_provenance", "provenance", "vram", "ram", "enhance",
)  # fmt: skip
# What of a machine's circumstances decides its bits.
_OF_A_MACHINE = ("device", "device_name", "native_kernels", "mova_engine", "torch", "triton", "python")


def file_digests() -> Digests:
    """Content digests of files; those of large files are kept in the user's cache folder, valid by size and time."""
    return Digests(cache_folder() / "digests", _try_write)


def _try_write(path: Path, data: bytes) -> None:
    """What cannot be kept is computed again."""
    with suppress(MovaError):
        write_atomic(path, data, sync=False)


def weights_of(folder: Path, digests: Digests) -> dict[str, str]:
    """SHA-256 of a model folder's files, by their place in it: its index, and all of the parts that it lists."""
    index = read_json(folder / INDEX)
    parts = [name for name, entry in index.items() if isinstance(entry, list) and class_of(index, name)]
    files = [path for name in parts for path in sorted((folder / name).rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): digests.of(path) for path in (folder / INDEX, *files)}


def adapter_of(spec: AdapterSpec, digests: Digests) -> dict[str, Any]:
    """What a manifest states of an adapter. sha256: of its file; of several files, of their names and digests."""
    require_adapter(spec.path)
    several = sorted(spec.path.glob("*.safetensors")) if spec.path.is_dir() else []
    if len(several) > 1:
        listed = "".join(f"{path.name} {digests.of(path)}\n" for path in several)
        digest = hashlib.sha256(listed.encode()).hexdigest()
    else:
        digest = digests.of(spec.path if spec.path.is_file() else find_adapters(spec.path, lambda _: None))
    stated = {"name": spec.path.name, "path": os.path.abspath(spec.path), "sha256": digest}
    return {**stated, "part": spec.part, "strength": spec.strength, "alpha": spec.alpha}


def machine_of(backend: Backend, dtype: str | None, mesh: str) -> dict[str, Any]:
    """What a manifest states of the machine: all that rounding can depend on beside the settings. dtype: of the towers;
    None: as the weights are stored. mesh: how processes share the work.
    """
    known = circumstances(backend)
    return {
        **{name: known[name] for name in _OF_A_MACHINE},
        "dtype": dtype or "as stored",
        "threads": torch.get_num_threads(),
        "mesh": mesh,
    }


def stated_settings(config: SampleConfig) -> dict[str, Any]:
    """What a manifest states of a command's settings, but for those that are a clip's own, or say where it goes."""
    return {k: v for k, v in to_plain(config).items() if k not in _OF_A_CLIP and v is not None}


@dataclass(frozen=True)
class SampledManifests:
    """Makes the manifests of a run's clips, and signs their files. shared: what the manifests have in common. signer:
    None: files are not signed. batch: clips that are made at once; the last ones may be fewer. original_prompt: of a
    clip that is made again, what the user wrote.
    """

    job: SamplingJob
    shared: ClipManifest
    signer: Signer | None
    batch: int
    digests: Digests
    original_prompt: str | None = None

    def manifest(self, index: int) -> ClipManifest:
        """That of the clip of `job.work[index]`, which has no file yet."""
        prompt, request = self.job.work[index]
        enhanced = self.job.enhanced[index] if self.job.enhanced else None
        own, inputs = self._inputs(prompt, request)
        first = index - index % self.batch
        batch = {"size": min(self.batch, len(self.job.work) - first), "position": index - first}
        return replace(
            self.shared,
            prompt=request.caption,
            original_prompt=self.original_prompt if enhanced is None else enhanced.original,
            seed=request.seed,
            settings={**self.shared.settings, "prompt": request.caption, "seed": request.seed, "count": 1, **own,
                      "batch": batch["size"]},
            inputs={**self.shared.inputs, **inputs},
            batch=batch,
        )  # fmt: skip

    def file(self, manifest: ClipManifest, name: str, data: bytes) -> tuple[bytes, ClipManifest]:
        """A clip's file, signed if there is a signer and its format has signatures, and its complete manifest."""
        made, by = data, None
        if self.signer is not None and format_of(data[:HEAD]) is not None:
            facts = stated_facts(manifest, self.job.config.provenance.prompt)
            made, by = signed(data, facts, self.signer, parent=self._parent(manifest)), self.signer.name
        return made, replace(manifest, file=file_facts(name, made, data, by))

    def _parent(self, manifest: ClipManifest) -> str | None:
        """The clip that this one is a changed form of, where that is a file which C2PA reads."""
        for option in ("retake", "extend", "video"):
            path = manifest.settings.get(option)
            if path is not None and Path(path).suffix.lower() in (".mp4", ".m4v", ".mov"):
                return path
        return None

    def _inputs(self, prompt: Prompt, request: Request) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings that name a clip's own files, and what these files are."""
        own: dict[str, Any] = {}
        inputs: dict[str, Any] = {}
        config, given = self.job.config, request.given
        kept = "video" if config.video or config.given == "video" else "audio" if config.audio or config.given else None
        if given is not None and kept is not None:
            own[kept] = os.path.abspath(given.path)
            own["start"] = given.start
        if prompt.first_frame is not None and kept != "video":
            inputs["image"] = {"pixels": hashlib.sha256(prompt.first_frame.tobytes()).hexdigest()}
            if prompt.file is not None:
                own["image"] = os.path.abspath(prompt.file)
                own["start"] = prompt.start
        for option in ("image", kept):
            if option is not None and option in own:
                place = {"path": own[option], "sha256": self.digests.of(Path(own[option]))}
                inputs[option] = {**inputs.get(option, {}), **place}
        return own, inputs


def records_of(
    job: SamplingJob, batch: int, chosen: ChosenMemory | None, facts: Mapping[str, Any], signer: Signer | None
) -> SampledManifests:
    """The records of a run's clips. facts: what metadata.jsonl says of all of them. Reads all weights, once."""
    digests = file_digests()
    settings, inputs = _settings(job, chosen, digests)
    shared = ClipManifest(
        prompt="",
        seed=0,
        settings=settings,
        sampling={name: value for name, value in facts.items() if name not in ("checkpoint", "lora", "run")},
        checkpoint=job.folder.name,
        weights=weights_of(job.folder, digests),
        adapters=tuple(adapter_of(each, digests) for each in job.lora),
        inputs=inputs,
        machine=machine_of(job.backend, job.config.dtype, str(job.mesh)),
    )
    return SampledManifests(job, shared, signer, batch, digests)


def signer_of(config: SampleConfig) -> Signer | None:
    """Who signs a run's clips; None with --no-provenance, and where the packages are missing and nothing of a signature
    is asked for.
    """
    if config.no_provenance:
        return None
    try:
        require_signing("signing clips")
    except MovaError:
        if config.provenance.asked:
            raise
        return None
    return Signer.open(None, config.provenance.certificate, config.provenance.key)


def _settings(job: SamplingJob, chosen: ChosenMemory | None, digests: Digests) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that the run's clips share, with all that was chosen for this machine and absolute places of files,
    and what these files are.
    """
    config = job.config
    settings = stated_settings(config)
    inputs: dict[str, Any] = {}
    files = {name: getattr(config, name) for name in ("last_image", "retake", "extend")}
    files["cache_file"] = cache_file(config) if config.cache_speedup > 1 else None
    for name, path in files.items():
        if path is not None:
            settings[name] = os.path.abspath(path)
            inputs[name] = {"path": settings[name], "sha256": digests.of(path)}
    keyframes = [text.rpartition(":") for text in config.keyframe]
    settings["keyframe"] = [f"{os.path.abspath(path)}:{seconds}" for path, _, seconds in keyframes]
    for path, _, seconds in keyframes:
        inputs[f"keyframe {seconds}"] = {"path": os.path.abspath(path), "sha256": digests.of(Path(path))}
    settings["lora"] = [_typed(each) for each in job.lora]
    settings |= {"checkpoint": os.path.abspath(job.folder), "device": job.backend.name}
    settings["threads"] = torch.get_num_threads()
    if chosen is not None:
        settings |= {"memory": to_plain(chosen.config), "sequential_guidance": chosen.sequential}
    return settings, inputs


def _typed(spec: AdapterSpec) -> str:
    """An adapter as --lora takes it."""
    part = () if spec.part is None else (spec.part,)
    return ":".join((os.path.abspath(spec.path), *part, repr(float(spec.strength))))
