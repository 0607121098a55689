"""Whole runs of a few steps: what they leave, exact resume, stopping, steps that are not finite, validation."""

import json
import os
import random
import signal
import wave

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import diffusion_settings, load_codecs, load_mova
from mova_engine.config.recipes import load_config
from mova_engine.errors import MovaError
from mova_engine.ops import bind
from mova_engine.train import assembly, trainer, validation
from mova_engine.train import step as step_module
from mova_engine.train.trainer import Trainer

EXACT = {"global_batch_size": 4, "loader": {"batch": 2, "workers": 1, "preload": False}, "optim": {"ema": 0.9}}


def training_tensors(run, step: int) -> dict:
    """A checkpoint's weights, their average and the optimizer's state.

    Not torch's own generator, from which nothing is drawn but a seed for each set of data workers.
    """
    folder = run / "checkpoints" / f"step-{step:06d}" / "training"
    files = ("master", "ema", "optimizer")
    return {(f, name): t for f in files for name, t in load_file(folder / f"{f}.safetensors").items()}


def same_tensors(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def interrupt_after(monkeypatch, step: int, signal_number: int = signal.SIGTERM) -> None:
    """Send this process a signal while it takes step number `step` (from 1)."""
    take = step_module.Updater.step

    def stepping(self, number, *args, **kwargs):
        result = take(self, number, *args, **kwargs)
        if number + 1 == step:
            os.kill(os.getpid(), signal_number)
        return result

    monkeypatch.setattr(step_module.Updater, "step", stepping)


def break_losses(monkeypatch, *steps: int) -> None:
    """Make the loss NaN in the given steps (from 1)."""
    true_losses, take, now = step_module.micro_losses, step_module.Updater.step, []

    def losses(*args):
        result = true_losses(*args)
        return type(result)(result.total * float("nan"), result.video, result.audio) if now[-1] in steps else result

    def stepping(self, number, *args, **kwargs):
        now.append(number + 1)
        return take(self, number, *args, **kwargs)

    monkeypatch.setattr(step_module, "micro_losses", losses)
    monkeypatch.setattr(step_module.Updater, "step", stepping)


def test_a_run_leaves_what_it_promises(small, ran_and_drawn):
    config = small(steps=3, log={"tensorboard": True, "every": 2})
    done = ran_and_drawn(config)
    assert done.status == 0 and [row["step"] for row in done.rows] == [2, 3]
    assert (config.folder / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert list((config.folder / "tensorboard").glob("events*"))
    assert load_config(str(config.folder / "config.yaml")) == config
    row = done.rows[-1]
    wanted = ("loss", "loss/video", "loss/audio", "grad_norm", "grad_norm/video_dit", "grad_norm/audio_dit", "tflops")
    wanted += ("grad_norm/dual_tower_bridge", "lr", "seconds/step", "tokens/second", "memory/gib", "memory/peak_gib")
    wanted += ("seconds/between", "seconds/data")
    assert all(row[name] > 0 for name in wanted)
    assert "mfu" not in row  # the peak of this machine's cores is not known
    assert "attention=" in done.said and "0.59 M parameters" in done.said


def test_a_checkpoint_is_a_model_folder_with_the_averaged_weights(small, ran):
    config = small(steps=3)
    ran(config)
    folder = config.folder / "checkpoints" / "step-000003"
    mova = load_mova(folder, bind(get_backend("cpu")), device="cpu")
    averaged = load_file(folder / "training" / "ema.safetensors")
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in mova.state_dict().items())
    assert not same_tensors(averaged, load_file(folder / "training" / "master.safetensors"))
    assert diffusion_settings(folder)["prediction_type"] == "x0"
    assert load_codecs(folder).audio.state()  # fitted to the clips


def test_no_pickle_is_written(small, ran):
    config = small(steps=1)
    ran(config)
    kinds = {path.suffix for path in (config.folder / "checkpoints").rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors"}


def test_stopping_and_going_on_gives_the_very_same_losses_and_weights(small, ran, monkeypatch):
    whole = ran(small("whole", steps=7, log={"every": 3}, **EXACT))
    with monkeypatch.context() as patched:
        interrupt_after(patched, 4)
        first = ran(small("broken", steps=7, log={"every": 3}, **EXACT))
    assert first.status == 143 and "stopped by request after step 4" in first.said
    second = ran(small("broken", steps=7, log={"every": 3}, **EXACT))
    assert second.status == 0 and "after step 4" in second.said
    assert second.losses == whole.losses
    assert same_tensors(*(training_tensors(x.config.folder, 7) for x in (second, whole)))


def test_what_a_users_code_draws_goes_on_too(small, ran, monkeypatch):
    """The engine has generators of its own; a model or an operator of the user's may draw from the libraries'."""
    drawn, step = [], trainer.Updater.step

    def drawing(updater, *given, **options):
        drawn.append((torch.rand(1).item(), random.random(), np.random.rand()))
        return step(updater, *given, **options)

    monkeypatch.setattr(trainer.Updater, "step", drawing)
    # Without data workers, for each set of which a seed is drawn.
    alone = {"loader": {"workers": 0}}
    ran(small("whole", **alone))
    ran(small("cut", steps=2, **alone))
    assert ran(small("cut", **alone)).status == 0
    assert len(drawn) == 8 and drawn[4:] == drawn[:4] and len({x for row in drawn[:4] for x in row}) == 12


def test_a_kill_after_rows_were_written_leaves_no_step_twice(small, ran, monkeypatch):
    with monkeypatch.context() as patched:
        break_losses(patched, 4, 5)
        with pytest.raises(MovaError):
            ran(small(steps=6, checkpoint={"every": 2}, optim={"max_nonfinite": 2}))
    assert [row["step"] for row in ran(small(steps=6, checkpoint={"every": 2})).rows] == [1, 2, 3, 4, 5, 6]


def test_ctrl_c_saves_and_leaves_with_its_own_status(small, ran, monkeypatch):
    interrupt_after(monkeypatch, 2, signal.SIGINT)
    config = small(steps=5)
    # Not Python's own handler everywhere: a shell starts background jobs with Ctrl-C ignored.
    before = signal.getsignal(signal.SIGINT)
    assert ran(config).status == 130
    assert (config.folder / "checkpoints" / "step-000002").is_dir()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_says_so_and_more_steps_go_on(small, ran):
    ran(small(steps=2))
    again = ran(small(steps=2))
    assert again.status == 0 and "is done: 2 steps, all; --steps would train on" in again.said
    fewer = ran(small(steps=1))
    assert fewer.status == 0 and "is done: 2 steps, more than the 1 asked for" in fewer.said
    longer = ran(small(steps=3))
    assert [row["step"] for row in longer.rows] == [1, 2, 3]
    assert "note: not as in step-000002: steps: 2 -> 3" in longer.said


def test_a_new_start_never_overwrites_a_run(small, ran):
    ran(small(steps=1))
    with pytest.raises(MovaError, match="give another --out"):
        ran(small(steps=1, resume="none"))


def test_another_runs_checkpoint_can_be_gone_on_from(small, ran):
    first = ran(small("first", steps=2))
    second = ran(small("second", steps=3, resume=str(first.config.folder)))
    assert [row["step"] for row in second.rows] == [3]
    with pytest.raises(MovaError, match="no such folder"):
        ran(small("third", resume="nowhere"))
    with pytest.raises(MovaError, match="not a checkpoint"):
        ran(small("third", resume=str(first.config.data[0])))


def test_a_step_that_is_not_finite_is_skipped_and_named(small, ran, monkeypatch):
    break_losses(monkeypatch, 2)
    done = ran(small(steps=3))
    assert done.status == 0 and "step 2 skipped" in done.said and "train_0" in done.said
    assert [row["skipped"] for row in done.rows] == [0.0, 1.0, 0.0]
    tensors = training_tensors(done.config.folder, 3)
    assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())
    assert {int(tensor) for (_, name), tensor in tensors.items() if name.endswith(":step")} == {2}


def test_too_many_steps_that_are_not_finite_stop_the_run(small, ran, monkeypatch):
    break_losses(monkeypatch, 1, 3, 4)
    config = small(steps=9, optim={"max_nonfinite": 2}, checkpoint={"every": 2})
    with pytest.raises(MovaError, match="2 steps in a row were not finite, the last was step 4"):
        ran(config)
    assert [path.name for path in (config.folder / "checkpoints").iterdir()] == ["step-000002"]


def test_bf16_trains_and_resumes_exactly(small, ran, monkeypatch):
    whole = ran(small("whole", steps=3, dtype="bfloat16", memory={"checkpointing": "full"}))
    with monkeypatch.context() as patched:
        interrupt_after(patched, 2)
        ran(small("broken", steps=3, dtype="bfloat16", memory={"checkpointing": "full"}))
    second = ran(small("broken", steps=3, dtype="bfloat16", memory={"checkpointing": "full"}))
    assert second.losses == whole.losses
    assert same_tensors(*(training_tensors(x.config.folder, 3) for x in (second, whole)))


def test_the_audio_tower_alone(small, ran):
    done = ran(small(steps=2, task="audio", diffusion={"text_dropout": 0.5}))
    assert all("loss/audio" in row and "loss/video" not in row for row in done.rows)
    folder = done.config.folder / "checkpoints" / "step-000002"
    assert (folder / "audio_dit" / "config.json").is_file() and not (folder / "video_dit").exists()
    assert "69 tokens" not in done.said and "138 tokens" in done.said  # two clips of 69 audio tokens, no video


def test_the_audio_tower_trains_on_sound_files_without_a_video_codec(small, ran, tmp_path, monkeypatch):
    for index in range(3):
        with wave.open(str(tmp_path / f"{index}.wav"), "wb") as file:
            file.setnchannels(1), file.setsampwidth(2), file.setframerate(24000)
            file.writeframes((3000 * np.sin(np.arange(36000) * (0.1 + 0.1 * index))).astype("<i2").tobytes())
    rows = [{"video_path": f"{index}.wav", "caption": "a tone"} for index in range(3)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("mova_engine.train.clip_data.build_video_codec", None)
    done = ran(small(steps=2, task="audio", data=tmp_path, validation={"every": 2, "data": tmp_path}))
    assert [row["step"] for row in done.rows if "heldout/audio" in row] == [2]
    assert all(np.isfinite(row["loss/audio"]) for row in done.rows if "loss" in row)
    with pytest.raises(MovaError, match=r"none of 3 clips .*: .*0.wav: has no video \(sound alone serves"):
        ran(small("joint", steps=1, data=tmp_path))
    with pytest.raises(MovaError, match="loader.silent_audio mask learns a silent clip's pictures alone"):
        small(task="audio", loader={"silent_audio": "mask"})


@pytest.mark.parametrize("model", [{"bridge": False}, {"aligned_rope": False}])
def test_the_ablations_train_and_say_so_in_their_checkpoint(small, ran, model):
    done = ran(small(steps=1, model=model))
    folder = done.config.folder / "checkpoints" / "step-000001"
    mova = load_mova(folder, bind(get_backend("cpu")), device="cpu")
    assert mova.config.bridge.aligned == model.get("aligned_rope", True)
    assert diffusion_settings(folder)["bridge"] == model.get("bridge", True)


def test_a_run_starts_from_a_checkpoints_weights(small, ran):
    start = ran(small("first", steps=3)).config.folder / "checkpoints" / "step-000003"
    model = {"checkpoint": str(start), "init_from_scratch": ["dual_tower_bridge"]}
    done = ran(small("second", steps=1, model=model, optim={"lr": 0.0}))
    taken = training_tensors(done.config.folder, 1)
    for component in ("video_dit", "audio_dit"):
        weights = load_file(start / component / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(taken["master", f"{component}.{name}"], tensor) for name, tensor in weights.items())
    # A new bridge's outputs start at zero; the checkpoint's had begun to move.
    output = "audio_to_video_conditioners.0.inner.o.weight"
    assert load_file(start / "dual_tower_bridge" / "diffusion_pytorch_model.safetensors")[output].any()
    assert not taken["master", f"dual_tower_bridge.{output}"].any()


def sample_stub(**arguments) -> None:
    """Stands in for `make_samples`: writes down what it was given."""
    arguments["out"].mkdir(parents=True)
    requests = arguments["inputs"][0].requests
    facts = {"clips": [(x.caption, None if x.first_frame is None else list(x.first_frame.shape)) for x in requests]}
    facts |= {"seeds": [x.seed for x in requests], "steps": arguments["steps"]}
    facts |= {"prediction": arguments["prediction"].kind, "clean": arguments["clean_first_frame"]}
    (arguments["out"] / "facts.json").write_text(json.dumps(facts))


def test_validation_reports_the_held_out_loss_and_samples_clips(small, ran, clips, monkeypatch):
    monkeypatch.setattr(validation, "make_samples", sample_stub)
    settings = {"every": 2, "data": str(clips), "clips": 3, "samples": 2}
    done = ran(small(steps=4, validation=settings))
    held = [row for row in done.rows if "heldout/video" in row]
    assert [row["step"] for row in held] == [2, 4] and held[0]["heldout/audio"] != held[1]["heldout/audio"]
    facts = json.loads((done.config.folder / "samples" / "step-000004" / "facts.json").read_text())
    assert facts["prediction"] == "x0" and facts["clean"] and [f[1] for f in facts["clips"]] == [[48, 48, 3]] * 2
    plain = ran(small("plain", steps=4))
    assert plain.losses == done.losses  # looking changes nothing


def test_prompts_are_sampled_on_the_way_with_and_without_held_out_clips(small, ran, clips, monkeypatch, tmp_path):
    monkeypatch.setattr(validation, "make_samples", sample_stub)
    (tmp_path / "prompts.txt").write_text("a blue ball\n")
    own = {"prompt": [f"a red ball --i {clips / 'train_00000.mp4'} --d 7"], "prompts": str(tmp_path / "prompts.txt")}
    done = ran(small(steps=2, seed=1, validation={"every": 2, "at_start": True, "steps": 3, **own}))
    assert not any("heldout/video" in row for row in done.rows) and "held out" not in done.said
    for step in (0, 2):
        facts = json.loads((done.config.folder / f"samples/step-{step:06d}/facts.json").read_text())
        assert facts["clips"] == [["a red ball", [48, 48, 3]], ["a blue ball", None]]
        assert facts["seeds"] == [7, 2] and facts["steps"] == 3
    both = ran(small("both", steps=2, validation={"every": 2, "data": str(clips), "clips": 1, "samples": 1, **own}))
    assert len([row for row in both.rows if "heldout/video" in row]) == 1
    facts = json.loads((both.config.folder / "samples/step-000002/facts.json").read_text())
    assert [caption for caption, _ in facts["clips"][1:]] == ["a red ball", "a blue ball"] and len(facts["clips"]) == 3


def test_prompts_that_cannot_be_read_are_refused_before_clips_are_encoded(small, ran, tmp_path, monkeypatch):
    monkeypatch.setattr(assembly, "training_sources", lambda *given: pytest.fail("clips were encoded first"))
    with pytest.raises(MovaError, match=r"none\.txt"):
        ran(small(validation={"every": 2, "prompts": str(tmp_path / "none.txt")}))


@pytest.mark.parametrize("encode", ["ahead", "online"])
def test_codecs_are_on_the_device_for_their_stages_alone(small, ran, clips, monkeypatch, tmp_path, encode):
    runs, assemble = [], trainer.assemble
    monkeypatch.setattr(trainer, "assemble", lambda *given: runs.append(assemble(*given)) or runs[-1])
    settings = {"every": 1, "data": str(clips), "clips": 2, "samples": 1}
    ran(small(steps=1, validation=settings, loader={"cache": tmp_path / "cache", "encode": encode}))
    report = runs[0].residency.report()
    moves = [(event.part, event.what) for event in report.events]
    names = ("text_encoder", "video_vae", "audio_vae")
    if encode == "online":
        assert all(part.resident and part.loaded == 1 for part in report.parts.values()) and len(moves) == 3
        return
    codecs = [("video_vae", "loaded"), ("audio_vae", "loaded"), ("audio_vae", "evicted"), ("video_vae", "evicted")]
    text, video, sound = ([(name, what) for what in ("loaded", "evicted")] for name in names)
    # Clips and captions, then words and first frames of the samples, all before there is a model; then what was made.
    assert moves == codecs + text + text + video + video + sound
    assert not any(part.resident for part in report.parts.values())


def test_clips_are_generated_where_none_are_given(tmp_path):
    loader, validation = (
        {"batch": 2, "synthetic_clips": 3, "num_fit_clips": 2},
        {"every": 1, "synthetic_clips": 2, "samples": 1},
    )
    run = tmp_path / "run"
    assert Trainer(load_config("nano", steps=1, out=run, device="cpu", loader=loader, validation=validation)).run() == 0
    assert len(list((run / "data").glob("*.mp4"))) == 3 and len(list((run / "heldout").glob("*.mp4"))) == 2
    assert len(list((run / "samples" / "step-000001").glob("*.mp4"))) == 1


def test_samples_that_fail_do_not_end_the_run(small, ran, clips, monkeypatch):
    def failing(**arguments):
        raise MovaError("no luck")

    monkeypatch.setattr(validation, "make_samples", failing)
    settings = {"every": 1, "data": str(clips), "clips": 1, "samples": 1}
    done = ran(small(steps=2, validation=settings))
    assert done.status == 0 and "no samples at step 1: no luck" in done.said


def test_a_deterministic_run_has_the_bits_of_a_plain_one_on_a_cpu(small, ran):
    """torch would refuse an operator that has no deterministic form."""
    plain = ran(small("plain", steps=2))
    strict = ran(small("strict", steps=2, deterministic=True))
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    names = ("loss", "grad_norm")
    assert [[row[name] for name in names] for row in plain.rows] == [
        [row[name] for name in names] for row in strict.rows
    ]
