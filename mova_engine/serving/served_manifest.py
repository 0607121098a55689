"""The manifest of a served clip, and its signature: what it was made of, in a file beside it and in the clip itself."""

from dataclasses import asdict
from pathlib import Path

from mova_engine.data.media.clip_manifest import ClipManifest, file_facts, stated_facts
from mova_engine.data.media.provenance import signed
from mova_engine.data.media.signer import Signer
from mova_engine.files.atomic import write_atomic
from mova_engine.files.digests import Digests
from mova_engine.inference.sample_settings import SampleSettings
from mova_engine.serving.video_job import VideoJob

_VIDEO = "video.mp4"


class ManifestMaker:
    """Makes manifests of one model's clips. signer: None: clips are not signed. cache: folder of the weights' digests,
    valid by the files' size and time.
    """

    def __init__(self, folder: Path, signer: Signer | None, cache: Path) -> None:
        self._folder, self._signer = folder, signer
        self._digests = Digests(cache, lambda path, data: write_atomic(path, data, sync=False))
        self._weights: dict[str, str] | None = None

    def file(self, job: VideoJob, made: SampleSettings, video: bytes, batch: int, place: int) -> tuple[bytes, bytes]:
        """The clip's file, signed where there is a signer, and its manifest. made: the settings as they were resolved.
        batch, place: how many clips were made at once, and which of them it is.
        """
        settings = job.settings
        resolved = {
            "steps": made.count,
            "solver": made.solver,
            "negative_prompt": made.negative_prompt,
            "reused_steps": list(made.reused),
            **asdict(made.guidance),
        }
        manifest = ClipManifest(
            prompt=settings.words,
            original_prompt=settings.prompt if settings.enhanced_prompt else None,
            seed=settings.seed,
            settings={"request": {name: each for name, each in asdict(settings).items() if each is not None}},
            sampling=resolved,
            checkpoint=job.model,
            weights=self._of_weights(),
            adapters=tuple({"name": name, "strength": each} for name, each in settings.adapters.items()),
            batch={"size": batch, "position": place},
        )
        data, by = video, None
        if self._signer is not None:
            data, by = signed(video, stated_facts(manifest), self._signer), self._signer.name
        whole = ClipManifest(**{**vars(manifest), "file": file_facts(_VIDEO, data, video, by)})
        return data, whole.to_bytes()

    def _of_weights(self) -> dict[str, str]:
        if self._weights is None:
            files = [path for path in sorted(self._folder.rglob("*")) if path.suffix in (".json", ".safetensors")]
            self._weights = {path.relative_to(self._folder).as_posix(): self._digests.of(path) for path in files}
        return self._weights
