"""Several processes make the clips that one makes: latents, pictures, sound, files."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from distributed.sampling import MODEL, save
from distributed.world import free_port

from mova_engine.config.mesh import MeshShape, choose_mesh
from mova_engine.config.parallel import ParallelConfig
from mova_engine.data.media.decode import read_clip
from mova_engine.diffusion.guidance import Guidance
from mova_engine.distributed.processes import Launch
from mova_engine.errors import MovaError
from mova_engine.inference.__main__ import main
from mova_engine.inference.process_mesh import choose_shape

# Latents after four steps, relative to their maximum, in float32; sums in another order are all that may differ.
LATENTS = 1e-5
# Convolutions over another number of rows; pictures lie in [-1, 1].
PICTURES = 1e-5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sampling") / "model"
    save(folder)
    return folder


def sampled(worlds, world: int, cfg: int, context_parallel: int, ulysses: int | None, *forms: str, **options):
    """By form of guidance: errors of video and audio, the worst of all ranks, which must agree to the bit."""
    arguments = {"cfg": cfg, "context_parallel": context_parallel, "ulysses": ulysses, "forms": forms, **options}
    found = worlds(world).run("errors_of_sampling", **arguments)
    assert all(same for each in found for _, _, same in each.values()), found
    return {form: max(max(each[form][:2]) for each in found) for form in forms}


@pytest.mark.parametrize(
    ("world", "cfg", "context_parallel", "ulysses", "forms"),
    [
        (2, 1, 2, 2, ("text",)),
        (2, 1, 2, 1, ("dual",)),
        (2, 2, 1, None, ("text", "text_bridge", "dual")),
        (4, 2, 2, 2, ("text", "dual")),
        (4, 1, 4, 2, ("text",)),
        pytest.param(4, 1, 4, 1, ("none", "text_bridge", "dual"), marks=pytest.mark.slow),
        pytest.param(4, 2, 2, 1, ("text", "text_bridge", "dual"), marks=pytest.mark.slow),
        pytest.param(6, 3, 2, 2, ("dual",), marks=pytest.mark.slow),
        pytest.param(8, 2, 4, 2, ("text", "text_bridge", "dual"), marks=pytest.mark.slow),
    ],
)
def test_latents_are_one_processs(worlds, world, cfg, context_parallel, ulysses, forms):
    """45 tokens, which none of these numbers of processes divides."""
    errors = sampled(worlds, world, cfg, context_parallel, ulysses, *forms)
    assert max(errors.values()) <= LATENTS, errors


@pytest.mark.parametrize(
    ("world", "cfg", "context_parallel"), [(2, 1, 2), (4, 2, 2), pytest.param(4, 1, 1, marks=pytest.mark.slow)]
)
def test_latents_of_sharded_weights_are_one_processs(worlds, world, cfg, context_parallel):
    """One branch runs the bridge, the other gathers none of it."""
    errors = sampled(worlds, world, cfg, context_parallel, None, "text_bridge", fsdp=True)
    assert max(errors.values()) <= LATENTS, errors


def test_one_evaluation_at_a_time_too(worlds):
    errors = sampled(worlds, 2, 2, 1, None, "dual", batch_guidance=False)
    assert max(errors.values()) <= LATENTS, errors


@pytest.mark.parametrize(
    ("cfg", "context_parallel", "options"),
    [
        (2, 1, {"begin": 0.5}),
        (1, 2, {"video_every": 2}),
        (2, 1, {"video_every": 0, "begin": 0.5}),
        (1, 2, {"video_every": 0, "fsdp": True}),
        # Where guidance ends, one process has the video that the other lacks.
        (2, 1, {"video_every": 2, "end": 0.7}),
        (2, 1, {"reused": (1, 3)}),
        (1, 2, {"reused": (1, 3)}),
        (1, 2, {"reused": (1,), "fsdp": True}),
    ],
)
def test_guidance_of_some_steps_and_sound_on_a_recorded_video(worlds, cfg, context_parallel, options):
    errors = sampled(worlds, 2, cfg, context_parallel, None, "dual", **options)
    assert max(errors.values()) <= LATENTS, errors


@pytest.mark.parametrize("mutation", ["swapped", "not exchanged"])
def test_branches_that_are_mixed_up_are_noticed(worlds, mutation):
    arguments = {"cfg": 2, "context_parallel": 1, "ulysses": None, "forms": ("text",), "mutation": mutation}
    for errors in worlds(2).run("errors_of_sampling", **arguments):
        assert min(errors["text"][:2]) > 1000 * LATENTS, errors


@pytest.mark.parametrize(("world", "total"), [(4, 6), (4, 3), (2, 5)])
def test_rows_of_pictures_have_no_seams(worlds, world, total):
    """Also where some process has no row at all."""
    found = worlds(world).run("error_of_rows", total=total)
    assert sum(own for own, _ in found) == total
    assert max(error for _, error in found) <= 1e-6, found


def test_a_dropped_halo_is_noticed(worlds):
    found = worlds(4).run("error_of_rows", total=6, mutation=True)
    assert min(error for _, error in found) > 1e-2, found


def test_wans_decoder_by_rows_gives_its_pictures(worlds):
    pytest.importorskip("diffusers", reason="diffusers is not installed (extra [codecs])")
    found = worlds(2).run("error_of_wan_rows", heights=(5, 2))
    assert max(max(each) for each in found) <= PICTURES, found
    broken = worlds(2).run("error_of_wan_rows", heights=(5,), mutation=True)
    assert min(min(each) for each in broken) > 100 * PICTURES, broken


@pytest.mark.slow
def test_wans_decoder_by_rows_of_four(worlds):
    pytest.importorskip("diffusers", reason="diffusers is not installed (extra [codecs])")
    found = worlds(4).run("error_of_wan_rows", heights=(9, 4))
    assert max(max(each) for each in found) <= PICTURES, found


@pytest.mark.parametrize(
    ("world", "cfg", "context_parallel", "shard", "count"),
    [
        (2, 2, 1, False, 1),
        # Three clips over two groups: one has nothing left, and where weights are shared it helps.
        (2, 1, 1, False, 3),
        (4, 1, 2, True, 3),
        pytest.param(4, 2, 2, False, 2, marks=pytest.mark.slow),
        pytest.param(4, 2, 1, True, 3, marks=pytest.mark.slow),
    ],
)
def test_clips_are_one_processs_and_come_in_order(worlds, checkpoint, world, cfg, context_parallel, shard, count):
    arguments = {"cfg": cfg, "context_parallel": context_parallel, "shard": shard, "count": count, "batch": 1}
    found = worlds(world).run("errors_of_clips", checkpoint=str(checkpoint), **arguments)
    assert [given for given, _, _ in found] == [count] + [0] * (world - 1)
    for levels, sound in found[0][1]:
        # A value on the edge between two levels may round either way.
        assert levels <= 1 and sound <= 1e-4, found[0]
    # Words are encoded, and sound is decoded, by one of those that make a clip together.
    sharers = cfg * context_parallel
    assert sum(text for _, _, (_, _, text) in found) == sum(audio for _, _, (_, audio, _) in found) == world // sharers


def command(checkpoint: Path, out: Path, *options: str) -> list[str]:
    common = ["--checkpoint", str(checkpoint), "--out", str(out), "--steps", "2", "--threads", "1"]
    return [*common, "--prompt", "rain", "--guidance", "text", "--text-scale", "3", *options]


def test_the_command_writes_once_what_one_process_writes(worlds, checkpoint, tmp_path):
    shared = ["--parallel.cfg", "2"]
    assert worlds(2).run("commanded", arguments=command(checkpoint, tmp_path / "two", *shared), run="two") == [0, 0]
    assert main(command(checkpoint, tmp_path / "one", "--device", "cpu")) == 0
    # Beside the record of what the engine has written there.
    names = [sorted(path.name for path in (tmp_path / folder).glob("[!.]*")) for folder in ("one", "two")]
    assert names[0] == names[1] == ["000.json", "000.mp4", "contact_sheet.png", "metadata.jsonl"]
    rows = [json.loads((tmp_path / folder / "metadata.jsonl").read_text()) for folder in ("one", "two")]
    # Runs of several processes do not go on after a stop, and have no name.
    assert isinstance(rows[0].pop("run"), str) and rows[1].pop("run") is None
    assert rows[0] == rows[1]
    one, two = (read_clip(tmp_path / folder / "000.mp4", MODEL.clip, silent="zeros") for folder in ("one", "two"))
    assert np.abs(one.video.astype(int) - two.video).mean() < 0.5
    assert np.abs(one.audio - two.audio).max() < 1e-3


@pytest.mark.parametrize(
    ("options", "world", "form", "reason"),
    [
        (
            {"cfg": 2},
            4,
            "none",
            "parallel.cfg 2 divides the evaluations of guidance among processes, but guidance 'none' has 1",
        ),
        (
            {"cfg": 3},
            6,
            "text",
            "parallel.cfg 3 divides the evaluations of guidance among processes, but guidance 'text' has 2",
        ),
        ({"cfg": 2, "context_parallel": 3}, 8, "text", "mesh: cfg 2 x context_parallel 3 does not divide the 8"),
        ({"cfg": 2}, 1, "text", "parallel.cfg is 2, but this is one process: start so many with torchrun"),
        ({"context_parallel": 2}, 1, "text", "parallel.context_parallel is 2, but this is one process"),
        ({"shard": True}, 1, "text", "parallel.shard divides the weights among processes, but this is one"),
        ({"context_parallel": 2}, 4, "text", "2 groups of processes for 1 clip: share each clip with --parallel."),
    ],
)
def test_a_mesh_that_cannot_sample_is_refused(options, world, form, reason):
    with pytest.raises(MovaError) as refusal:
        choose_shape(ParallelConfig(**options), Launch(0, 0, world), MODEL, Guidance(form), 1)
    assert str(refusal.value).startswith(reason)


def test_meshes_for_sampling():
    options = ParallelConfig(cfg=2, context_parallel=2)
    assert choose_shape(options, Launch(0, 0, 4), MODEL, Guidance("text"), 1) == MeshShape(cfg=2, ulysses=2)
    # Of proposals, one has as many branches as guidance allows.
    with pytest.raises(MovaError, match=r"Nearest that fit: .*cfg 3"):
        choose_mesh(6, 2, context_parallel=2, cfg=4, branches=3)
    for wrong, message in (
        ({"cfg": 0}, "parallel.cfg must be at least 1, got 0"),
        ({"replicate": 2}, "parallel.replicate concerns sharded weights"),
    ):
        with pytest.raises(MovaError, match=message):
            ParallelConfig(**wrong)


@pytest.mark.slow
def test_as_a_user_starts_it(checkpoint, tmp_path):
    launcher = ["torch.distributed.run", "--nproc-per-node", "4", "--master-port", str(free_port()), "-m"]

    def start(out: Path, *options: str, several: bool = True) -> subprocess.CompletedProcess:
        program = [sys.executable, "-m", *(launcher if several else []), "mova_engine.inference"]
        line = [*program, *command(checkpoint, out, "--device", "cpu", *options)]
        return subprocess.run(line, capture_output=True, text=True, timeout=300, cwd=tmp_path)

    assert start(tmp_path / "one", several=False).returncode == 0
    shared = "--parallel.cfg", "2", "--parallel.context-parallel", "2"
    done = start(tmp_path / "four", *shared)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("1 clips in") == 1 and "4 processes: cfg 2 x ulysses 2" in done.stdout
    one, four = (read_clip(tmp_path / folder / "000.mp4", MODEL.clip, silent="zeros") for folder in ("one", "four"))
    assert np.abs(one.video.astype(int) - four.video).mean() < 0.5
    again = start(tmp_path / "four", *shared)
    assert again.returncode != 0
    assert again.stderr.count("error: ") == again.stderr.count("already holds samples") == 1, again.stderr[-2000:]
    refused = start(tmp_path / "none", "--parallel.context-parallel", "3")
    assert refused.returncode != 0 and not (tmp_path / "none").exists()
    assert refused.stderr.count("error: mesh: context_parallel 3 does not divide the 4 processes") == 1


@pytest.mark.slow
def test_a_process_that_is_killed_is_named_in_one_line(checkpoint, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "4", "--master-port"]
    options = "--steps", "100000", "--parallel.cfg", "2", "--parallel.context-parallel", "2", "--parallel.timeout", "30"
    options += "--device", "cpu"
    program = [*launcher, str(free_port()), "-m", "mova_engine.inference"]
    line = [*program, *command(checkpoint, tmp_path / "out", *options)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as started:
        sampling = Path(f"/proc/{started.pid}/task/{started.pid}/children")
        deadline = time.monotonic() + 120
        while len(numbers := sampling.read_text().split()) < 4 or time.monotonic() < deadline - 90:
            assert started.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(int(numbers[2]), signal.SIGKILL)
        said, _ = started.communicate(timeout=120)
    told = [text for text in said.splitlines() if "error: " in text]
    assert len(told) == 1 and re.search(r"error: rank 2 on \S+ died or was stopped: no heartbeat", told[0]), said[
        -3000:
    ]
