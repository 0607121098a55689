"""The same clips give the same losses, whether they stay in their film or are written as files."""

import json

import numpy as np
import pytest
from data_pipeline.test_same_losses import _small, losses, scenes, write_film  # noqa: F401 (a fixture that small models need)

from mova_engine.config.curate_files import WrittenSettings
from mova_engine.config.model import get_preset
from mova_engine.curation.accepted_clips import AcceptedClip
from mova_engine.curation.written_clips import write_accepted
from mova_engine.data.clip_edit import ClipEdit
from mova_engine.data.metadata import read_metadata

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.long
COUNT, BORDER = 5, 16


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips of one letterboxed film whose sound is an eighth of a second early."""
    root = tmp_path_factory.mktemp("raw")
    shape, (pictures, sounds) = get_preset("nano").clip, scenes(root / "bounce", COUNT)
    film = np.pad(np.concatenate(pictures), ((0, 0), (BORDER, BORDER), (0, 0), (0, 0)))
    early = np.concatenate([*sounds, np.zeros(6000, np.int16)])[6000:]
    write_film(root / "film.mkv", film, early)
    edit = ClipEdit((0, BORDER, shape.width, shape.height), 0.125)
    return shape, [
        AcceptedClip(f"{number:024x}", root / "film.mkv", 1.5 * number, f"ball {number}", edit.shown_size(0, 0), edit)
        for number in range(COUNT)
    ]


def test_virtual_clips_files_and_shards_train_with_the_same_losses(clips, tmp_path):
    shape, accepted = clips
    found = {}
    for crf in (0, 18):
        for form in ("none", "mp4", "shards"):
            out = tmp_path / f"{form}-{crf}"
            settings = WrittenSettings(crf=crf, shard_clips=2)
            assert write_accepted(out, accepted, shape, form, settings) == {}
            assert len(read_metadata(out)) == COUNT
            found[form, crf] = losses(out, tmp_path / f"run-{form}-{crf}")
    virtual = found["none", 0]
    assert len({row["loss"] for row in virtual}) == 6
    # Without loss in the files: to the bit. Coded: files and shards to the bit, and both near the films.
    assert found["mp4", 0] == found["shards", 0] == found["none", 18] == virtual
    assert found["mp4", 18] == found["shards", 18] != virtual
    apart = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(found["mp4", 18], virtual, strict=True)]
    print(json.dumps({"coded at crf 18, losses apart by": apart}))
    assert max(apart) < 0.05
