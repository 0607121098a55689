"""The manifest beside a clip, CLIP.json: what it was made of, from which `mova sample --manifest` makes it again."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from mova_engine.config.remaking import MANIFEST
from mova_engine.data.media.signed_formats import content_digests
from mova_engine.errors import MovaError
from mova_engine.files.atomic import require_file, write_atomic

FORMAT = 1
SUFFIX = ".json"
# What JSON has for each entry.
_KINDS = {"prompt": str, "seed": int, "original_prompt": str, "settings": dict, "sampling": dict, "checkpoint": str,
          "weights": dict, "adapters": list, "inputs": dict, "batch": dict, "machine": dict, "file": dict}  # fmt: skip
# Settings that repeat a prompt, which a signature states only where it is asked to.
_PROMPTS = ("negative_prompt",)


@dataclass(frozen=True, kw_only=True)
class ClipManifest:
    """What a clip was made of. The mappings hold what JSON has.

    prompt: what the model was given. original_prompt: what the user wrote, where it was rewritten. seed: of the noise.
    settings: those of the command that makes it again. sampling: steps, guidance and the rest, as they were resolved.
    checkpoint: the model folder's name. weights: SHA-256 of its files, by their place in it. adapters: of each `name`,
    `sha256`, `part`, `strength`, `alpha`. inputs: files that it was made from, by option: `path`, `sha256`. batch: how
    many clips were made at once, `size`, and which of them it is, `position`; rounding depends on both. machine:
    device, dtype, versions. file: `name`, `sha256`, `content` (digests before signing), `signed_by`.
    """

    prompt: str
    seed: int
    original_prompt: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    sampling: Mapping[str, Any] = field(default_factory=dict[str, Any])
    checkpoint: str = ""
    weights: Mapping[str, str] = field(default_factory=dict[str, str])
    adapters: tuple[Mapping[str, Any], ...] = ()
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    batch: Mapping[str, int] = field(default_factory=dict[str, int])
    machine: Mapping[str, Any] = field(default_factory=dict[str, Any])
    file: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_bytes(self) -> bytes:
        """As the file has it: JSON in UTF-8."""
        return (json.dumps({MANIFEST: FORMAT, **asdict(self)}, indent=1, ensure_ascii=False) + "\n").encode()


def manifest_path(clip: str | Path) -> Path:
    """Where the manifest of a clip is."""
    return Path(clip).with_suffix(SUFFIX)


def file_facts(name: str, data: bytes, content: bytes, signed_by: str | None) -> dict[str, Any]:
    """`ClipManifest.file`. data: the file. content: the same before it was signed."""
    sums = content_digests(content)
    return {"name": name, "sha256": hashlib.sha256(data).hexdigest(), "content": sums, "signed_by": signed_by}


def stated_facts(manifest: ClipManifest, prompt: bool = False) -> dict[str, Any]:
    """What a signature states of a clip. No file's place, and no prompt unless `prompt` asks for it."""
    kept = {name: value for name, value in manifest.sampling.items() if prompt or name not in _PROMPTS}
    adapters = [{name: x for name, x in each.items() if name != "path"} for each in manifest.adapters]
    facts = {
        "seed": manifest.seed,
        "checkpoint": manifest.checkpoint,
        "weights": dict(manifest.weights),
        "adapters": adapters,
        "sampling": kept,
        "machine": dict(manifest.machine),
    }
    if prompt:
        facts["prompt"] = manifest.prompt
        if manifest.original_prompt is not None:
            facts["original_prompt"] = manifest.original_prompt
    return facts


def write_manifest(path: str | Path, manifest: ClipManifest) -> None:
    """Write a manifest, whole or not at all. MovaError where that cannot be."""
    write_atomic(path, manifest.to_bytes())


def read_manifest(path: str | Path) -> ClipManifest:
    """Read a manifest. MovaError for what is none, is of a later version, or lacks what it must have."""
    require_file(path)
    try:
        content: Any = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise MovaError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise MovaError(f"{path}: no manifest of a clip: it is not JSON") from None
    if not isinstance(content, dict) or MANIFEST not in content:
        raise MovaError(f"{path}: no manifest of a clip, as mova sample writes beside each: CLIP.json")
    values = cast(dict[str, Any], content)
    if values.pop(MANIFEST) != FORMAT:
        raise MovaError(f"{path}: a manifest of another version of mova_engine, which this one does not read")
    for name, kind in _KINDS.items():
        _check(path, name, values.get(name), kind)
    unknown = sorted(values.keys() - _KINDS.keys())
    if unknown:
        raise MovaError(f"{path}: unknown entries: {', '.join(unknown)}")
    given = {name: value for name, value in values.items() if value is not None}
    return ClipManifest(**{**given, "adapters": tuple(given.get("adapters", ()))})


def _check(path: str | Path, name: str, value: Any, kind: type) -> None:
    """MovaError for an entry of a wrong type, or for none where there must be one."""
    if value is None and name not in ("prompt", "seed"):
        return
    right = isinstance(value, kind) and not isinstance(value, bool)
    if isinstance(value, list):
        right = right and all(isinstance(each, dict) for each in cast(list[Any], value))
    if not right:
        raise MovaError(f"{path}: its entry '{name}' is {'missing' if value is None else f'no {kind.__name__}'}")
