"""The manifest of a served clip, and its signature: what it was made of, in a file beside it and in the clip itself.

Clients can read both: files are named as they are beside the manifest, adapters and the model as clients call them.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mova_engine.backend import Backend
from mova_engine.config.adapter_spec import AdapterSpec
from mova_engine.config.clip import ClipSettings
from mova_engine.config.mesh import MeshShape
from mova_engine.data.media.clip_manifest import ClipManifest, file_facts, stated_facts
from mova_engine.data.media.mp4_boxes import is_mp4
from mova_engine.data.media.provenance import signed
from mova_engine.data.media.signer import Signer
from mova_engine.errors import MovaError
from mova_engine.files.atomic import write_atomic
from mova_engine.files.digests import Digests
from mova_engine.inference.clip_manifests import adapter_of, machine_of, stated_settings, weights_of
from mova_engine.serving.job_requests import JobRequest
from mova_engine.serving.store_files import StoreFiles
from mova_engine.serving.video_job import VideoJob, VideoSettings
from mova_engine.serving.worker_settings import WorkerSettings

_VIDEO, _SOURCE = "video.mp4", "input.mp4"
# Pictures of a job, and the options of `mova sample` that take them.
_PICTURES = {"image": "first.png", "last_image": "last.png"}
log = logging.getLogger(__name__)


class ManifestMaker:
    """Makes manifests of one model's clips, and signs them. folder: the model's. signer: None: clips are not signed.
    worker: what the worker was told.
    """

    def __init__(
        self, folder: Path, signer: Signer | None, files: StoreFiles, backend: Backend, worker: WorkerSettings
    ) -> None:
        self._folder, self._signer, self._files = folder, signer, files
        self._backend, self._worker = backend, worker
        # In the store's folder, for the next worker; valid by the files' size and time.
        self._digests = Digests(files.folder / "digests", lambda path, data: write_atomic(path, data, sync=False))
        self._weights: dict[str, str] | None = None

    def file(self, job: VideoJob, made: JobRequest, video: bytes, batch: int, place: int) -> tuple[bytes, bytes]:
        """The clip's file, signed where there is a signer, and its manifest. made: what the pipeline made of the job.
        batch, place: how many clips were made at once, and which of them it is.
        """
        settings, sampled = job.settings, made.settings
        if self._weights is None:
            self._weights = weights_of(self._folder, self._digests)
        resolved = {
            "steps": sampled.count,
            "solver": sampled.solver,
            "negative_prompt": sampled.negative_prompt,
            "reused_steps": list(sampled.reused),
            **asdict(sampled.guidance),
        }
        machine = machine_of(self._backend, self._worker.dtype, str(MeshShape()))
        manifest = ClipManifest(
            prompt=settings.words,
            original_prompt=settings.prompt if settings.enhanced_prompt else None,
            seed=settings.seed,
            settings=self._settings(job, machine, batch),
            sampling=resolved,
            checkpoint=job.model,
            weights=self._weights,
            adapters=tuple(self._adapter(name, each) for name, each in settings.adapters.items()),
            inputs=self._inputs(job, made),
            batch={"size": batch, "position": place},
            machine=machine,
        )
        data, by = video, None
        if self._signer is not None:
            stated = stated_facts(manifest, self._worker.provenance.prompt)
            data, by = self._signed(job, video, stated, self._signer), self._signer.name
        return data, replace(manifest, file=file_facts(_VIDEO, data, video, by)).to_bytes()

    def _signed(self, job: VideoJob, video: bytes, facts: Mapping[str, Any], signer: Signer) -> bytes:
        """The file, signed, with the clip that it is a changed form of where that is a file which C2PA reads."""
        source = self._files.path(job.id, _SOURCE)
        if job.settings.mode != "generate" and source.exists():
            with open(source, "rb") as file:
                readable = is_mp4(file.read(8))
            try:
                if readable:
                    return signed(video, facts, signer, parent=source)
            except MovaError as error:
                log.warning("%s: signed without its source, which %s", job.id, error)
        return signed(video, facts, signer)

    def _settings(self, job: VideoJob, machine: Mapping[str, Any], batch: int) -> dict[str, Any]:
        """Those of the command that makes the clip again; of edits and extensions the request."""
        own = job.settings
        if own.mode != "generate":
            return {"request": {name: each for name, each in asdict(own).items() if each is not None}}
        given = {option: Path(name) for option, name in _PICTURES.items() if self._has(own, option)}
        config = own.sample_config(
            Path(job.model),
            clip=ClipSettings(frames=own.frames, height=own.height, width=own.width, fps=own.fps),
            lora=tuple(f"{name}:{float(strength)!r}" for name, strength in own.adapters.items()),
            device=self._backend.name,
            dtype=self._worker.dtype,
            threads=machine["threads"],
            batch=batch,
            **given,
        )
        pictures = {option: str(name) for option, name in given.items()}
        return {**stated_settings(config), **pictures, "prompt": own.words, "seed": own.seed, "count": 1}

    def _inputs(self, job: VideoJob, made: JobRequest) -> dict[str, dict[str, Any]]:
        names = {option: name for option, name in _PICTURES.items() if self._has(job.settings, option)}
        if job.settings.mode != "generate":
            names["video"] = _SOURCE
        places = {option: (name, self._files.path(job.id, name)) for option, name in names.items()}
        found = {
            option: {"path": name, "sha256": self._digests.of(path)}
            for option, (name, path) in places.items()
            if path.exists()
        }
        first = made.request.first_frame
        if "image" in found and first is not None:
            found["image"]["pixels"] = hashlib.sha256(first.tobytes()).hexdigest()
        return found

    def _has(self, settings: VideoSettings, option: str) -> bool:
        return settings.first_frame if option == "image" else settings.last_frame

    def _adapter(self, name: str, strength: float) -> dict[str, Any]:
        path = Path(dict(self._worker.lora)[name])
        return {**adapter_of(AdapterSpec(path, strength=float(strength)), self._digests), "name": name, "path": name}
