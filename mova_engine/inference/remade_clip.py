"""A clip that is made again from its manifest: whether what it needs is there, what differs, whether it is the same."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mova_engine.config.adapter_spec import parse_adapter
from mova_engine.config.sample import SampleConfig
from mova_engine.data.media.clip_manifest import ClipManifest, read_manifest
from mova_engine.data.media.signed_formats import differing_parts
from mova_engine.errors import MovaError
from mova_engine.inference.sampling_job import SamplingJob

# Settings that say where files are, whose contents are compared, and those that follow from others.
_PLACES = ("checkpoint", "lora", "image", "video", "audio", "retake", "extend", "last_image", "keyframe", "cache_file")
_NOT_COMPARED = (*_PLACES, "prompt", "seed", "batch", "threads", "device")


@dataclass(frozen=True)
class RemadeClip:
    """The manifest of a clip that is made again, and its path."""

    path: Path
    manifest: ClipManifest

    @classmethod
    def read(cls, path: Path, config: SampleConfig) -> "RemadeClip":
        """The manifest, if all that it needs is where `config` has it. MovaError that names what is missing."""
        manifest = read_manifest(path)
        if config.prompts is not None or config.count not in (None, 1):
            raise MovaError(f"--manifest {path} makes one clip: leave --prompts and --count out")
        if not config.checkpoint.exists():
            raise MovaError(
                f"{path}: its weights, {manifest.checkpoint}, are not at {config.checkpoint}: --checkpoint DIR says "
                f"where they are; the SHA-256 of {len(manifest.weights)} files is compared"
            )
        wanted = {parse_adapter(text).path for text in config.lora}
        for each in manifest.adapters:
            if Path(each["path"]) in wanted and not Path(each["path"]).exists():
                raise MovaError(
                    f"{path}: its adapter {each['name']} (sha256 {str(each['sha256'])[:16]}) is not at {each['path']}: "
                    "--lora FILE names it, and all others of the clip"
                )
        for name, each in manifest.inputs.items():
            _require_input(path, name, each, config)
        return cls(path, manifest)

    def job(self, job: SamplingJob) -> tuple[SamplingJob, int]:
        """The job with as many clips as there were in the batch, all of them this one, and the place of the one that is
        kept: rounding depends on both.
        """
        size, position = self.manifest.batch.get("size", 1), self.manifest.batch.get("position", 0)
        if job.config.batch != size or not 0 <= position < size:
            return job, 0
        return replace(job, work=job.work * size, enhanced=job.enhanced * size), position

    def differences(self, now: ClipManifest) -> Iterator[str]:
        """What of a clip that is about to be made is other than the manifest has it, a line each."""
        then = self.manifest
        for name in ("prompt", "seed"):
            if getattr(then, name) != getattr(now, name):
                yield f"{name}: {getattr(then, name)!r} in the manifest, {getattr(now, name)!r} now"
        yield from _between("setting", _compared(then.settings), _compared(now.settings))
        yield from _between("weights", then.weights, now.weights, _digests)
        if _adapters(then) != _adapters(now):
            yield f"adapters: {_adapters(then)} in the manifest, {_adapters(now)} now"
        yield from _between("content of", _contents(then), _contents(now), _digests)
        yield from _between("batch", then.batch, now.batch)
        yield from _between("machine", then.machine, now.machine)

    def outcome(self, now: ClipManifest) -> tuple[bool, str]:
        """Whether the clip is the same, and that in a line."""
        then_content, content = (each.file.get("content", {}) for each in (self.manifest, now))
        then_whole, whole = (each.file.get("sha256") for each in (self.manifest, now))
        if then_whole == whole:
            return True, f"the same file, byte for byte: sha256 {whole}"
        if then_content.get("sha256") == content.get("sha256"):
            return True, f"the same clip, byte for byte before it was signed: sha256 {content.get('sha256')}"
        parts = " and ".join(differing_parts(then_content, content)) or "its content"
        return False, f"not the same clip as {self.path} states: {parts} differ"


def _require_input(path: Path, name: str, stated: Mapping[str, Any], config: SampleConfig) -> None:
    option = f"--{name.split()[0].replace('_', '-')}"
    value = getattr(config, name, None)
    if name == "image" and value is None:
        raise MovaError(f"{path}: its first frame was no file of its own: give it by {option} FILE")
    place = stated.get("path")
    if place is None or (value is not None and str(value) != place):
        return
    if not Path(place).exists():
        raise MovaError(f"{path}: {place}, of {option}, is not there: {option} says where it is now")


def _between(
    what: str, then: Mapping[str, Any], now: Mapping[str, Any], shown: Callable[[Any], str] = repr
) -> Iterator[str]:
    """Lines about the entries of two mappings that are not the same. None, no entry and an empty one are the same."""
    for name in sorted({*then, *now}):
        old, new = then.get(name) or None, now.get(name) or None
        if old != new:
            yield f"{what} {name}: {shown(old)} in the manifest, {shown(new)} now"


def _digests(value: Any) -> str:
    return "none" if value is None else f"sha256 {str(value)[:16]}"


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _NOT_COMPARED}


def _contents(manifest: ClipManifest) -> dict[str, Any]:
    """Of each input its content's digest: of a first frame that of its pixels."""
    return {name: each.get("pixels") or each.get("sha256") for name, each in manifest.inputs.items()}


def _adapters(manifest: ClipManifest) -> str:
    """All that decides what adapters do, in words."""
    words: list[str] = []
    for each in manifest.adapters:
        more = [f"{name} {each[name]}" for name in ("part", "alpha") if each.get(name) is not None]
        words.append(f"sha256 {str(each['sha256'])[:16]} at {' '.join((str(each['strength']), *more))}")
    return ", ".join(words) or "none"
