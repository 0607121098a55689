"""What is known of a clip before anything is measured of it: the columns that `filter_columns.LABELS` declares."""

from collections.abc import Mapping
from typing import Any

from mova_engine.curation.units import ClipWindow, Unit


def labels_of(unit: Unit, clip: ClipWindow, facts: Mapping[str, Any]) -> dict[str, Any]:
    """A clip's labels by column. facts: of its unit's cut, with "width" and "height" of the upright pictures."""
    whole = (0, 0, facts["width"], facts["height"])
    _, _, width, height = clip.crop or whole
    return {
        "clip_id": clip.id(unit.digest),
        "source": unit.file.source,
        "name": unit.file.name,
        "sha256": unit.digest,
        "start": float(clip.start),
        "frames": clip.frames,
        "fps": float(clip.fps),
        "width": width,
        "height": height,
        "kind": clip.kind,
        "shots": clip.shots,
    }
