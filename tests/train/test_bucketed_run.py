"""A run with buckets: it trains, goes on exactly, finds what was encoded ahead, and samples in each bucket's size."""

from pathlib import Path

import pytest

from mova_engine.commands.encode import main as encode_main
from mova_engine.data.latent_cache import LatentCache
from mova_engine.data.media.decode import probe_shown
from mova_engine.data.metadata import read_metadata
from mova_engine.data.synthetic.bounce import Scene, generate
from mova_engine.errors import MovaError
from mova_engine.inference.__main__ import main as sample_main

BUCKETS = {"sizes": ("64x48x33", "48x64x37")}


@pytest.fixture(scope="module")
def balls(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("balls")
    generate(folder, 12, seed=3, split="heldout", scenes=[Scene(64, 48, 33), Scene(48, 64, 37)])
    return folder


def test_a_run_with_buckets_goes_on_bit_for_bit_and_samples_in_their_sizes(balls, small, ran, tmp_path):
    common = {"data": balls, "buckets": BUCKETS}
    held = {"every": 4, "data": balls, "clips": 4, "samples": 2, "steps": 1}
    whole = ran(small("whole", **common, validation=held))
    assert whole.status == 0 and "64x48x33" in whole.said and "steps/epoch" in whole.said
    ran(small("parts", **common, steps=4, checkpoint={"every": 2}))
    parts = tmp_path / "parts"
    last = parts / "checkpoints" / "step-000004"
    for file in sorted(last.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    last.rmdir()
    again = ran(small("parts", **common, steps=4))
    assert "going on from" in again.said and again.losses == whole.losses
    assert all(row["epoch/48x64x37"] == 0 for row in whole.rows if "loss" in row)
    samples = tmp_path / "whole" / "samples" / "step-000004"
    sizes = {probe_shown(entry.path)[:2] for entry in read_metadata(samples)}
    assert sizes == {(64, 48), (48, 64)}
    out = tmp_path / "portrait"
    asked = ["--clip.width", "48", "--clip.height", "64", "--clip.frames", "37", "--steps", "1", "--device", "cpu"]
    assert (
        sample_main(["--checkpoint", str(tmp_path / "whole"), "--prompt", "a red ball", "--out", str(out), *asked]) == 0
    )
    width, height, seconds = probe_shown(out / "000.mp4")
    assert (width, height) == (48, 64) and seconds == pytest.approx(37 / 24, abs=0.02)
    with pytest.raises(MovaError, match="of a run with buckets: give the same"):
        ran(small("parts", data=balls, steps=6))


def test_what_is_encoded_ahead_is_found(balls, small, ran, tmp_path, monkeypatch):
    """With the codecs of the run, whose own scale is part of what an entry is called."""
    ran(small("first", data=balls, buckets=BUCKETS, steps=1, loader={"cache": tmp_path / "a"}))
    asked = ["--data", str(balls), "--checkpoint", str(tmp_path / "first"), "--out", str(tmp_path / "b")]
    assert encode_main([*asked, "--buckets.sizes", *BUCKETS["sizes"]]) == 0
    names = [sorted(path.name for path in (tmp_path / x / "clips").rglob("*.safetensors")) for x in "ab"]
    assert len(names[0]) == 12 and names[0] == names[1]
    monkeypatch.setattr(LatentCache, "_encode", None)
    second = small("second", data=balls, buckets=BUCKETS, steps=1, loader={"cache": tmp_path / "b"})
    assert ran(second).status == 0
