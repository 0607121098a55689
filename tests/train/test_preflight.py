"""Whatever can be known to be wrong is told before a clip is decoded."""

import json
import sys

import pytest

from mova_engine.config.recipes import load_config
from mova_engine.config.train import LogSettings
from mova_engine.data import latent_cache
from mova_engine.errors import MovaError
from mova_engine.train.metrics import MetricsLog
from mova_engine.train.trainer import Trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory, clips):
    """A run of one step."""
    out = tmp_path_factory.mktemp("trained")
    settings = {"loader": {"batch": 2, "num_fit_clips": 4}, "validation": {"every": 0}, "log": {"tensorboard": False}}
    assert Trainer(load_config("nano", data=clips, out=out, steps=1, device="cpu", **settings)).run() == 0
    return out / "checkpoints" / "step-000001"


@pytest.fixture
def nothing_decoded(monkeypatch):
    """Decoding fails the test."""

    def decoded(path, *_, **__):
        raise AssertionError(f"{path} was decoded before the settings were checked")

    for module in ("mova_engine.data.latent_cache", "mova_engine.train.clip_data"):
        monkeypatch.setattr(f"{module}.read_clip", decoded)


WRONG = {
    "clips of one latent frame, which does not count": (
        {"clip": {"frames": 1}, "diffusion": {"skip_first_frame": True}},
        "clips of 1 frames have no other: train on longer clips, or set --diffusion.no-skip-first-frame",
    ),
    "beginnings that are the whole clip": (
        {"clip": {"frames": 9}, "diffusion": {"given_start": 0.5}},
        "diffusion.start_frames gives 9 pictures of clips of 9",
    ),
    "a LoRA target that matches nothing": (
        {"lora": {"rank": 4, "targets": ["qq"]}, "model": {"checkpoint": "TRAINED"}},
        "LoRA target 'qq' matches no linear layer",
    ),
    "adapters without a model": ({"lora": {"rank": 4}}, "give --model.checkpoint"),
    "fp8 in float32": (
        {"lora": {"rank": 4}, "memory": {"frozen": "fp8"}, "model": {"checkpoint": "TRAINED"}},
        "give --dtype bfloat16",
    ),
    "another kind of output": (
        {"lora": {"rank": 4}, "model": {"checkpoint": "TRAINED"}, "diffusion": {"prediction_type": "velocity"}},
        "adapters cannot change it",
    ),
    "new components without the others": (
        {"model": {"init_from_scratch": ["dual_tower_bridge"]}},
        "give --model.checkpoint",
    ),
    "no such held-out clips": ({"validation": {"every": 1, "data": "nowhere"}}, "nowhere: no such folder"),
    "no such clips": ({"data": "nowhere"}, "nowhere: no such folder"),
    "another seed": ({"resume": "TRAINED", "seed": 7}, "was trained with seed 0.*give --seed 0"),
    "a checkpoint of adapters": (
        {"resume": "TRAINED", "lora": {"rank": 4}, "model": {"checkpoint": "TRAINED"}},
        "belongs to another model",
    ),
    "a checkpoint of another size": (
        {"resume": "TRAINED", "model": {"preset": "bench-mid"}},
        "belongs to another model",
    ),
}


def _filled(value, places):
    if isinstance(value, dict):
        return {name: _filled(item, places) for name, item in value.items()}
    return places.get(value, value) if isinstance(value, str) else value


@pytest.mark.parametrize("what", WRONG)
def test_wrong_settings(what, small, trained, clips, nothing_decoded):
    settings, words = WRONG[what]
    settings = _filled(settings, {"TRAINED": str(trained), "CLIPS": str(clips)})
    with pytest.raises(MovaError, match=words) as caught:
        Trainer(small(**settings)).run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("package", "settings", "words"),
    [
        ("tensorboard", {"log": {"tensorboard": True}}, "pip install tensorboard, or give --log.no-tensorboard"),
        ("matplotlib", {}, "the loss curve needs the package matplotlib, which is not installed: pip install"),
    ],
)
def test_packages_that_are_missing(small, nothing_decoded, monkeypatch, package, settings, words):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MovaError, match=words):
        Trainer(small(**settings)).run()


def test_a_package_that_is_broken(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MovaError, match="log.tensorboard: .*; repair it, or give --log.no-tensorboard"):
        MetricsLog(tmp_path, LogSettings(), 0)


def test_a_checkpoint_whose_weights_do_not_fit(small, trained, clips, tmp_path, nothing_decoded):
    index = json.loads((trained / "model_index.json").read_text())
    (tmp_path / "model").mkdir()
    for path in trained.iterdir():
        if path.name not in ("model_index.json", "audio_dit"):
            (tmp_path / "model" / path.name).symlink_to(path)
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "model" / "audio_dit").mkdir()
    (tmp_path / "model" / "audio_dit" / "config.json").write_text((trained / "audio_dit" / "config.json").read_text())
    with pytest.raises(MovaError, match="audio_dit has no diffusion_pytorch_model.safetensors"):
        Trainer(small(model={"checkpoint": tmp_path / "model"})).run()


def test_the_reasons_are_told_where_no_clip_can_be_read(small, tmp_path):
    """All clips unfit for the same reason is what a first-time user meets."""
    folder = tmp_path / "unfit"
    folder.mkdir()
    # More than one of the few from which the codecs are fitted: all are tried before giving up.
    names = [f"{i}.mp4" for i in range(5)]
    rows = [json.dumps({"video_path": name, "caption": "x"}) for name in names]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    for name in names:
        (folder / name).write_bytes(b"nonsense")
    with pytest.raises(MovaError, match="none of 5 clips can be read to fit the codecs to: .*0.mp4: damaged.*; ...$"):
        Trainer(small(data=folder)).run()


def test_own_clips_are_not_validated_on_bouncing_balls(small, ran, clips, tmp_path):
    """nano's recipe writes held-out balls; beside clips of the user's own they would tell nothing."""
    run = ran(small(steps=1, validation={"every": 1, "synthetic_clips": 96}))
    assert run.status == 0 and "--validation.data names a folder of held-out clips" in run.said
    assert not (run.config.folder / "heldout").exists() and not any("heldout/video" in row for row in run.rows)


def test_bad_clips_of_an_online_run_are_told_once(small, ran, clips, tmp_path, caplog):
    """They are not decoded again at every step either."""
    folder = tmp_path / "clips"
    folder.mkdir()
    rows = [json.loads(line) for line in (clips / "metadata.jsonl").read_text().splitlines()]
    rows = [{**row, "video_path": str(clips / row["video_path"])} for row in rows]
    rows[3]["video_path"] = "bad.mp4"
    (folder / "bad.mp4").write_bytes(b"nonsense")
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    read = []
    original = latent_cache.read_clip

    def counted(path, *args, **kwargs):
        read.append(str(path))
        return original(path, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_cache, "read_clip", counted)
        run = ran(small(steps=12, data=folder, loader={"encode": "online", "cache": tmp_path / "cache"}))
    assert run.status == 0 and run.trainer.step == 12
    assert sum(path.endswith("bad.mp4") for path in read) == 1
    assert sum("bad.mp4" in record.getMessage() for record in caplog.records) == 1
