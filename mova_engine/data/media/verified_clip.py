"""A clip's signature and the manifest beside it, compared, in words."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mova_engine.data.media.clip_manifest import ClipManifest, manifest_path, read_manifest
from mova_engine.data.media.signed_formats import HEAD, content_digests, differing_parts, format_of
from mova_engine.data.media.verified_file import VerifiedFile, verify_file
from mova_engine.errors import MovaError

# The name of the manifest in a server's folder of a clip.
_SERVED = "manifest.json"
# Of a C2PA action, what it says.
_DONE = {"c2pa.created": "made", "c2pa.edited": "changed", "c2pa.opened": ""}
_SOURCES = {
    "trainedAlgorithmicMedia": "by a model",
    "compositeWithTrainedAlgorithmicMedia": "by a model, in a part",
    "algorithmicMedia": "by a program without a model",
    "digitalCapture": "by a camera",
}
# Entries of the manifest that a signature states too.
_STATED = ("seed", "weights", "prompt")


@dataclass(frozen=True)
class VerifiedClip:
    """file: what its signature says. beside: the manifest beside it; None: there is none. disagreements: what the
    manifest states that the clip is not.
    """

    file: VerifiedFile
    beside: Path | None
    disagreements: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether the clip is as it was signed, and the manifest beside it agrees."""
        return self.file.state == "valid" and not self.disagreements

    def words(self) -> Iterator[str]:
        """What was found, in lines."""
        file = self.file
        trusted = "trusted" if file.trusted else "not among the trusted ones (--trust)"
        states = {
            "valid": f"valid: as it was signed by {file.signer}, {trusted}",
            "altered": "ALTERED" + (f": not as it was signed by {file.signer}" if file.signer else ""),
            "invalid": f"INVALID: the signature by {file.signer} does not hold",
            "unsigned": "unsigned: it holds no C2PA manifest",
        }
        yield f"{file.path}: {states[file.state]}"
        yield from (f"  {problem}" for problem in file.problems)
        if file.generator is not None:
            done = " ".join(filter(None, (_DONE.get(action, action) for action in file.actions)))
            how = "" if file.source is None else f" {_SOURCES.get(file.source, file.source)}"
            yield f"  {done or 'signed'}{how}, says {file.generator}"
        for each in file.ingredients:
            yield f"  from {each['title']} ({each['relationship']}), whose own signature is {_state(each['state'])}"
        if file.facts is not None:
            yield from _facts(file.facts)
        if self.beside is not None:
            yield from (f"  {self.beside.name}: {line}" for line in self.disagreements or ("agrees",))


def verify_clip(path: str | Path, trust: Sequence[str | Path] = ()) -> VerifiedClip:
    """Check a clip, and compare it with the manifest beside it: CLIP.json, or manifest.json that names it. Errors: as
    of `verify_file`.
    """
    file = verify_file(path, trust)
    beside = _beside(file.path)
    if beside is None:
        return VerifiedClip(file, None, ())
    try:
        return VerifiedClip(file, beside, tuple(_disagreements(file, read_manifest(beside))))
    except MovaError as error:
        return VerifiedClip(file, beside, (str(error).removeprefix(f"{beside}: "),))


def _beside(path: Path) -> Path | None:
    own, served = manifest_path(path), path.with_name(_SERVED)
    if own.is_file():
        return own
    try:
        return served if served.is_file() and read_manifest(served).file.get("name") == path.name else None
    except MovaError:
        return None


def _disagreements(file: VerifiedFile, manifest: ClipManifest) -> Iterator[str]:
    data = file.path.read_bytes()
    if manifest.file.get("signed_by") is not None and file.state == "unsigned":
        yield f"states that {manifest.file['signed_by']} signed the clip: the signature was removed"
    if hashlib.sha256(data).hexdigest() != manifest.file.get("sha256"):
        yield _content(data, manifest.file.get("content", {}))
    for name in _STATED:
        stated = {} if file.facts is None else file.facts
        if name in stated and stated[name] != getattr(manifest, name):
            yield f"states another {name} than the signature"


def _content(data: bytes, content: Mapping[str, Any]) -> str:
    """How a file differs from the one that a manifest is of. content: its digests before it was signed."""
    try:
        form = format_of(data[:HEAD])
        now = content_digests(data if form is None else form.without_store(data))
    except MovaError as error:
        return f"is of a whole file; this one {error}"
    if now["sha256"] == content.get("sha256"):
        return "is of these pictures and this sound, but the signature is another one"
    differ = " and ".join(differing_parts(now, content)) or "bytes outside of pictures, sound and header"
    return f"is of another file: {differ} differ"


def _facts(facts: Mapping[str, Any]) -> Iterator[str]:
    weights = facts.get("weights")
    files = f", {len(weights)} files of weights" if isinstance(weights, Mapping) else ""
    yield f"  seed {facts.get('seed')}, checkpoint {facts.get('checkpoint')}{files}"
    adapters = facts.get("adapters")
    for each in adapters if isinstance(adapters, list) else ():
        yield f"  adapter {each.get('name')} at {each.get('strength')} (sha256 {str(each.get('sha256'))[:16]})"
    if "prompt" in facts:
        yield f"  prompt: {facts['prompt']}"


def _state(state: str) -> str:
    return {"valid": "valid", "unsigned": "absent", "altered": "broken"}[state]
