"""The planned step cache: its plans are the best there are, its calibration says what a reuse costs."""

import itertools
import json
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from mova_engine.adapters.lora import add_lora, remove_lora, save_lora
from mova_engine.commands.calibrate_steps import main as calibrate_command
from mova_engine.config.adapter_spec import AdapterSpec
from mova_engine.config.calibration import CALIBRATE
from mova_engine.config.model import ClipConfig
from mova_engine.data.media.decode import read_clip
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.schedule import Schedule
from mova_engine.errors import MovaError
from mova_engine.inference.__main__ import main
from mova_engine.inference.requests import Request
from mova_engine.inference.sample_settings import SampleSettings
from mova_engine.inference.step_cache import check_key, key_of
from mova_engine.inference.step_calibration import calibrate
from mova_engine.inference.step_plan import StepPlan, least_error, must_run

TEXT, CLIP = Guidance("text", 3.0), ClipConfig(frames=9, height=32, width=48)
# Of the pipeline's six steps the expert of high noise has four.
SCHEDULE, SETTINGS = Schedule(boundary=0.6), SampleSettings(6, TEXT)


def best_by_trying_all(cost, forced, error, speedup):
    found = None
    for choice in itertools.product((False, True), repeat=len(cost)):
        if any(reused and must for reused, must in zip(choice, forced, strict=True)):
            continue
        if sum(c for c, reused in zip(cost, choice, strict=True) if not reused) * speedup > sum(cost) + 1e-9:
            continue
        total, run = 0.0, 0
        for step, reused in enumerate(choice):
            if not reused:
                run = step
            elif (more := error(run, step)) is None:
                break
            else:
                total += more
        else:
            if found is None or total < found[0]:
                found = total, tuple(step for step, reused in enumerate(choice) if reused)
    return found and found[1]


def test_a_plan_has_the_least_error_there_is():
    draw, refused = random.Random(0), 0
    for _ in range(60):
        count, reach = draw.randint(3, 9), draw.randint(1, 4)
        errors = {pair: draw.random() for pair in itertools.combinations(range(count), 2) if pair[1] - pair[0] <= reach}
        cost = [draw.randint(1, 3) for _ in range(count)]
        forced = [step in (0, count - 1) or draw.random() < 0.2 for step in range(count)]
        speedup = draw.choice((1, 1.2, 1.5, 2, 3))
        arguments = cost, forced, lambda i, j, errors=errors: errors.get((i, j)), speedup
        expected = best_by_trying_all(*arguments)
        if expected is None:
            refused += 1
            with pytest.raises(MovaError, match="ask for at most"):
                least_error(*arguments)
        else:
            assert least_error(*arguments) == expected
    assert 5 < refused < 40


def test_the_speed_up_that_a_refusal_names_is_possible():
    arguments = [2] * 10, [step in (0, 9) for step in range(10)], lambda i, j: 0.1 if j - i < 3 else None
    with pytest.raises(MovaError) as refusal:
        least_error(*arguments, 9.0)
    most = re.search(r"ask for at most ([\d.]+)", str(refusal.value))
    assert least_error(*arguments, float(most[1])) == (1, 2, 4, 5, 7, 8)
    for wrong in (0.5, float("nan"), float("inf")):
        with pytest.raises(MovaError, match="a speed-up must be at least 1"):
            least_error([1, 1], [True, True], lambda *_: None, wrong)


def test_the_first_steps_the_last_and_the_first_of_each_phase_always_run():
    first = [0] * 12 + [12] * 8
    assert [step for step, must in enumerate(must_run(first)) if must] == [0, 1, 2, 12, 19]


def test_an_error_of_the_calibration_is_what_its_reuse_costs(pipeline):
    """In the step itself, all steps before being the same: for each branch's guided sum, of both modalities."""
    pipeline.schedule, requests = SCHEDULE, [Request("rain", 1), Request("wind", 2)]
    (true,) = pipeline.latents(requests, SETTINGS, batch=2)
    rows = calibrate(pipeline, requests, SETTINGS, 2, batch=2)
    pairs = [(row["from"], row["step"]) for row in rows]
    # Two back at most, and never over the boundary between the fourth step and the fifth.
    assert sorted(pairs) == [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (4, 5)]
    assert {name for row in rows for name in (*row["video"], *row["audio"])} == {"text+bridge", "bridge", "guided"}
    sigmas = SETTINGS.noise_levels(SCHEDULE)
    for row in rows:
        before, step = row["from"], row["step"]
        reused = tuple(range(before + 1, step + 1))
        if len(reused) > 1:
            continue
        plain, cached = [], []
        plan = StepPlan(reused, 6, 0, 0, 0.0, 0.0)
        list(pipeline.latents(requests, SETTINGS, batch=2, on_step=plain.append))
        list(pipeline.latents(requests, replace(SETTINGS, cache=plan), batch=2, on_step=cached.append))
        for name, levels in (("video", sigmas.video_sigmas), ("audio", sigmas.audio_sigmas)):
            old, new, clean = (getattr(x, name) for x in (cached[step].velocity, plain[step].velocity, true))
            begin, end = levels[step : step + 2]
            error = (begin - end) / (1 - end) * (old - new).norm() / clean.norm()
            assert row[name]["guided"] == pytest.approx(float(error), rel=1e-3)
            assert row[name]["guided"] > 1e-4


def test_clips_are_calibrated_batch_by_batch(pipeline):
    pipeline.schedule, requests = SCHEDULE, [Request("rain", 1), Request("wind", 2)]
    together, apart = (calibrate(pipeline, requests, SETTINGS, 1, batch=batch) for batch in (2, 1))
    for one, other in zip(together, apart, strict=True):
        assert one["video"]["guided"] == pytest.approx(other["video"]["guided"], rel=1e-3)
        assert one["audio"]["bridge"] == pytest.approx(other["audio"]["bridge"], rel=1e-3)


def command(folder, out, *options):
    common = ["--checkpoint", str(folder), "--prompt", "rain", "--device", "cpu", "--threads", "1", "--steps", "6"]
    return [*common, "--guidance", "text", "--text-scale", "3", "--out", str(out), *options]


@pytest.fixture(scope="module")
def calibrated(saved_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("calibrated") / "cache.json"
    assert calibrate_command(command(saved_run, path)) == 0
    return path


def test_the_commands_measure_plan_and_sample(saved_run, calibrated, tmp_path, capsys):
    file = ["--cache-file", str(calibrated)]
    assert main(command(saved_run, tmp_path / "cached", "--cache", "1.2", *file)) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "step cache: the video tower runs 10 of 12 times (1.20 times fewer), in steps" in said
    assert re.search(r"predicted error of the latents: video [\d.]+ %, audio [\d.]+ %", said)
    assert (
        main(command(saved_run, tmp_path / "plain")) == main(command(saved_run, tmp_path / "one", "--cache", "1")) == 0
    )
    cached, plain, one = (
        json.loads((tmp_path / name / "metadata.jsonl").read_text()) for name in ("cached", "plain", "one")
    )
    assert len(cached["reused_steps"]) == 1 and plain["reused_steps"] == one["reused_steps"] == []
    clips = [read_clip(tmp_path / name / "000.mp4", CLIP, silent="zeros") for name in ("cached", "plain", "one")]
    assert np.array_equal(clips[1].video, clips[2].video) and np.array_equal(clips[1].audio, clips[2].audio)
    assert not np.array_equal(clips[0].audio, clips[1].audio)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--text-scale", "4"), "another guidance text_scale: 3.0, this run has 4.0"),
        (("--clip.frames", "5"), "another frames: 9, this run has 5"),
        (("--solver", "unipc"), "another solver: euler, this run has unipc"),
        (("--video-shift", "4"), "another video shift: 3.0, this run has 4.0"),
        (("--negative-prompt", "blur"), "another negative prompt: , this run has blur"),
        (("--cache", "3"), "the step cache cannot leave out so much"),
    ],
)
def test_a_calibration_of_another_run_is_refused_before_weights_are_read(
    saved_run, calibrated, tmp_path, options, told, monkeypatch
):
    monkeypatch.setattr("mova_engine.inference.sampling_run.load_pipeline", None)
    words = command(saved_run, tmp_path / "out", "--cache", "1.2", "--cache-file", str(calibrated))
    name, value = options
    if name in words:
        words[words.index(name) + 1] = value
    else:
        words += options
    with pytest.raises(MovaError) as refusal:
        main(words)
    assert told in str(refusal.value)


def test_a_calibration_of_another_checkpoint_or_a_damaged_one_is_refused(saved_run, run_folder, calibrated, tmp_path):
    def sampled(path, folder=saved_run):
        return main(command(folder, tmp_path / "out", "--cache", "1.2", "--cache-file", str(path)))

    weights = sorted((run_folder / "checkpoints" / "step-000100" / "video_dit").glob("*.safetensors"))[0]
    data = bytearray(weights.read_bytes())
    data[-len(data) // 3 :] = bytes(x ^ 1 for x in data[-len(data) // 3 :])
    weights.write_bytes(data)
    (run_folder / "checkpoints" / "step-000100" / "training" / "checksums.json").unlink(missing_ok=True)
    with pytest.raises(MovaError, match="another checkpoint"):
        sampled(calibrated, run_folder)
    with pytest.raises(MovaError, match="which mova calibrate writes; or name a file by --cache-file"):
        sampled(tmp_path / "none.json")
    content, broken = json.loads(calibrated.read_text()), tmp_path / "broken.json"
    first = content["errors"][0]
    for change, told in (
        ({"errors": [{**first, "video": {}}]}, "is damaged"),
        ({"errors": [{**first, "video": {"guided": float("nan")}}]}, "is damaged"),
        ({"errors": 3}, "is damaged"),
        ({"key": None}, "is damaged"),
        ({"kind": "bench"}, "was not written by mova calibrate"),
    ):
        broken.write_text(json.dumps({**content, **change}))
        with pytest.raises(MovaError, match=told):
            sampled(broken)
    broken.write_text("{")
    with pytest.raises(MovaError, match="cannot read"):
        sampled(broken)


def test_adapters_of_a_calibration_are_told_by_their_content(saved_run, pipeline, tmp_path):
    folder, one, two = saved_run / "checkpoints" / "step-000100", tmp_path / "one", tmp_path / "two"

    def key(file, alpha=None, strength=1.0):
        return key_of(folder, CLIP, SETTINGS, SCHEDULE, [AdapterSpec(file, alpha=alpha, strength=strength)])

    mova = pipeline.mova.requires_grad_(False)
    for seed, place in enumerate((one, two)):
        place.mkdir()
        add_lora(mova, ("q",), 2, 4.0, torch.Generator().manual_seed(seed))
        save_lora(mova, place / "style.safetensors")
        remove_lora(mova)
    first = key(one / "style.safetensors")
    (one / "style.safetensors").rename(one / "renamed.safetensors")
    check_key(tmp_path, first, key(one / "renamed.safetensors"))
    for other in (
        key(two / "style.safetensors"),
        key(one / "renamed.safetensors", alpha=3.0),
        key(one / "renamed.safetensors", strength=0.5),
        key_of(folder, CLIP, SETTINGS, SCHEDULE),
    ):
        with pytest.raises(MovaError, match="was calibrated for other adapters"):
            check_key(tmp_path, first, other)


def test_what_a_cache_cannot_do_is_refused_on_the_command_line(saved_run, tmp_path):
    for options, told in (
        (("--cache", "0.5"), "cache is a speed-up of at least 1, adaptive or none, got '0.5'"),
        (("--cache", "nan"), "cache is a speed-up of at least 1, adaptive or none, got 'nan'"),
        (("--cache", "often"), "cache is a speed-up of at least 1, adaptive or none, got 'often'"),
        (("--cache", "adaptive:x"), "adaptive:THRESHOLD takes a number from 0 on, got 'x'"),
        (("--cache", "adaptive:-1"), "adaptive:THRESHOLD takes a number from 0 on, got '-1'"),
        (("--cache", "adaptive", "--batch", "2"), "leave --batch out"),
        (("--cache", "adaptive", "--solver", "heun"), "heun corrects each step"),
        (("--cache", "adaptive", "--video", "x.mp4"), "--video-passes says how often"),
        (("--cache", "adaptive", "--audio-alone"), "leave --cache out"),
        (("--cache", "adaptive", "--cache-file", "x.json"), "--cache-file goes with --cache"),
        (("--cache-file", "x.json"), "--cache-file goes with --cache"),
        (("--cache", "2", "--solver", "heun"), "heun corrects each step"),
        (("--cache", "2", "--video", "x.mp4"), "--video-passes says how often"),
        (("--cache", "2", "--audio-alone"), "leave --cache out"),
    ):
        with pytest.raises(MovaError, match=told):
            main(command(saved_run, tmp_path / "out", *options))
    for options, told in (
        (("--cache", "2"), "--cache is not of a calibration"),
        (("--parallel.cfg", "2"), "--parallel is not of a calibration"),
        (("--solver", "heun"), "heun takes no step cache"),
        (("--longest", "0"), "longest must be at least 1"),
    ):
        with pytest.raises(MovaError, match=told):
            CALIBRATE.parse(command(saved_run, tmp_path / "out", *options))
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(MovaError, match="it is not replaced: give another --out"):
        calibrate_command(command(saved_run, tmp_path / "mine.json"))
    with pytest.raises(MovaError, match="was planned for 5 steps, this run has 6"):
        SampleSettings(6, cache=StepPlan((2,), 5, 4, 5, 0.0, 0.0))
