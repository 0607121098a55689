"""Sampling in several processes over HCCL: every way of sharing a clip gives one process's, and so does the command."""

import json

import numpy as np
import pytest

from ascend.ranks import ROOT, launch
from mova_engine.data.media.decode import read_clip

# One group, beside those of the other tests that start ranks.
pytestmark = [pytest.mark.npu, pytest.mark.xdist_group("samplers")]
WORKER = ROOT / "tests" / "ascend" / "checks_worker.py"
LATENTS, ROWS = 1e-5, 1e-6


@pytest.fixture(scope="module")
def checkpoint(npu, tmp_path_factory):
    from distributed.sampling import save

    folder = tmp_path_factory.mktemp("model") / "model"
    save(folder)
    return folder


def latents(cfg: int, context_parallel: int, ulysses: int | None, *forms: str, **options) -> tuple[str, dict]:
    sizes = {"cfg": cfg, "context_parallel": context_parallel, "ulysses": ulysses}
    return "errors_of_sampling", {**sizes, "forms": forms, **options}


def clips(checkpoint, cfg: int, context_parallel: int, shard: bool, count: int) -> tuple[str, dict]:
    sizes = {"cfg": cfg, "context_parallel": context_parallel, "shard": shard, "count": count, "batch": 1}
    return "errors_of_clips", {"checkpoint": str(checkpoint), **sizes}


def run(tmp_path, ranks: int, *wanted: tuple[str, dict]) -> list[list]:
    """What each check returned, by rank."""
    launch(ranks, tmp_path, WORKER, tmp_path, json.dumps(wanted))
    found = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(ranks)]
    return [list(check) for check in zip(*found, strict=True)]


def judge(name: str, found: list) -> None:
    """Against one process on the same device."""
    if name == "errors_of_sampling":
        for video, audio, same in (values for rank in found for values in rank.values()):
            assert same and max(video, audio) <= LATENTS, found
    elif name == "error_of_rows":
        assert max(error for _, error in found) <= ROWS and all(own for own, _ in found), found
    elif name == "errors_of_clips":
        assert found[0][0] and [each[0] for each in found[1:]] == [0] * (len(found) - 1)
        # A value on the edge between two levels may round either way.
        assert all(levels <= 1 and sound <= 1e-4 for levels, sound in found[0][1]), found
    else:
        assert all(good == "norm on cpu" and "No backend type" in broken for good, broken in found), found


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_shared_clips_are_one_processs(checkpoint, tmp_path, ranks):
    if ranks == 2:
        wanted = [
            latents(2, 1, None, "text", "dual"),
            latents(1, 2, 2, "text"),
            latents(1, 2, 1, "text_bridge"),
            latents(1, 2, None, "text_bridge", fsdp=True),
            clips(checkpoint, 2, 1, False, 1),
            clips(checkpoint, 1, 2, True, 2),
            clips(checkpoint, 1, 1, False, 3),
        ]
    else:
        wanted = [
            latents(2, 2, 2, "text", "dual"),
            latents(1, 4, 2, "text"),
            latents(1, 4, 1, "dual"),
            latents(2, 2, None, "text_bridge", fsdp=True),
            clips(checkpoint, 2, 2, False, 1),
            clips(checkpoint, 1, 2, True, 3),
        ]
    wanted += [("error_of_rows", {"total": 6}), ("offloaded_step", {})]
    for (name, _), found in zip(wanted, run(tmp_path, ranks, *wanted), strict=True):
        judge(name, found)


def test_the_command_writes_what_one_process_writes(checkpoint, tmp_path):
    from distributed.sampling import MODEL

    common = ("-m", "mova_engine.inference", "--checkpoint", checkpoint, "--device", "npu", "--steps", 2)
    common += ("--prompt", "rain", "--guidance", "text", "--text-scale", 3)
    launch(1, tmp_path, *common, "--out", tmp_path / "one")
    launch(2, tmp_path, *common, "--out", tmp_path / "two", "--parallel.cfg", 2)
    one, two = (read_clip(tmp_path / folder / "000.mp4", MODEL.clip, silent="zeros") for folder in ("one", "two"))
    assert np.abs(one.video.astype(int) - two.video).mean() < 0.5
    assert np.abs(one.audio - two.audio).max() < 1e-3
