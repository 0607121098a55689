"""From words and a first frame to a clip; loading; the trainer's hook."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from mova_engine.backend import get_backend
from mova_engine.checkpoints.locate import find_model
from mova_engine.codecs import video_from_uint8
from mova_engine.config.memory import MemoryConfig
from mova_engine.config.model import get_preset
from mova_engine.data.media.decode import read_clip
from mova_engine.data.metadata import read_metadata
from mova_engine.data.synthetic.bounce import Bounce, render_video
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Schedule
from mova_engine.errors import MovaError
from mova_engine.inference.clip_codecs import ClipCodecs
from mova_engine.inference.denoising import LoopOptions
from mova_engine.inference.loading import trained
from mova_engine.inference.pipeline import Pipeline, load_pipeline
from mova_engine.inference.requests import Prompt, Request
from mova_engine.inference.sample_settings import SampleSettings, default_settings
from mova_engine.inference.validation_samples import encode_samples, make_samples

SETTINGS = SampleSettings(4, Guidance("text", 2.0))
CAPTIONS = ("a red ball bouncing", "a blue ball", "rain")


@pytest.fixture
def frame() -> np.ndarray:
    """A first frame of a bounce clip, uint8 [48, 48, 3]."""
    return render_video(Bounce("red", "slow", 0.2, 20.0))[0]


def only(pipeline, request, settings=SETTINGS):
    (clip,) = pipeline.generate([request], settings)
    return clip


def test_a_clip_has_pictures_and_sound_of_equal_duration(pipeline):
    clip = only(pipeline, Request("rain"))
    assert clip.video.shape == (9, 32, 48, 3)
    assert clip.video.dtype == np.uint8
    assert clip.audio.shape == (18000,)  # 9 frames at 24 fps
    assert clip.audio.dtype == np.float32
    assert clip.video[1:].std() > 1
    assert clip.audio.std() > 1e-3


def test_clips_do_not_depend_on_their_batch(pipeline, frame):
    requests = [Request(c, seed, frame if seed % 2 else None) for seed, c in enumerate(CAPTIONS)]
    alone = [only(pipeline, request) for request in requests]
    for batch in (2, 3):
        for one, other in zip(alone, pipeline.generate(requests, SETTINGS, batch=batch), strict=True):
            # A value on the edge between two levels may round either way.
            assert np.abs(one.video.astype(int) - other.video).max() <= 1
            assert np.abs(one.audio - other.audio).max() <= 1e-5 * np.abs(one.audio).max()


def test_the_seed_decides(pipeline):
    first, again, other = (only(pipeline, Request("rain", seed)) for seed in (5, 5, 6))
    assert np.array_equal(first.video, again.video)
    assert np.array_equal(first.audio, again.audio)
    assert not np.array_equal(first.audio, other.audio)
    assert (first.video != other.video).mean() > 0.5


def test_the_given_first_frame_is_what_the_clip_begins_with(pipeline, frame):
    pipeline.options = LoopOptions(clean_first_frame=True)
    shown = only(pipeline, Request("rain", 0, frame)).video[0]
    volume = torch.zeros(1, 3, 1, 32, 48)
    cropped = frame[8:40]  # 48x48 to 48x32: the centre
    volume[0] = video_from_uint8(torch.from_numpy(cropped[None]))
    codec = pipeline.codecs.video
    kept = codec.decode(codec.encode(volume))[0, :, 0].permute(1, 2, 0).clamp(-1, 1) * 127.5 + 127.5
    assert np.abs(shown - kept.numpy()).max() < 1
    assert np.abs(shown.astype(int) - cropped).mean() < 6
    white = only(pipeline, Request("rain", 0)).video[0]
    assert (white >= 254).all()


def test_conditions_are_the_latents_of_first_frame_then_zeros(pipeline, frame):
    codecs = ClipCodecs(pipeline.codecs, pipeline.shape, pipeline.processes, pipeline.residency)
    requests = [Request("a", 0, frame), Request("b"), Request("c", 0, frame, frame)]
    given = codecs.gather(codecs.encode([requests], "")[0], requests, torch.device("cpu"))
    volume = torch.zeros(1, 3, 9, 32, 48)
    volume[0, :, :1] = video_from_uint8(torch.from_numpy(frame[None, 8:40].copy()))
    assert torch.equal(given.condition[0, 4:], pipeline.codecs.video.encode(volume)[0])
    volume[0, :, -1] = volume[0, :, 0]
    assert torch.equal(given.condition[2, 4:], pipeline.codecs.video.encode(volume)[0])
    volume[:] = 0
    volume[:, :, 0] = 1
    assert torch.equal(given.condition[1, 4:], pipeline.codecs.video.encode(volume)[0])
    mask = given.condition[:, :4].mean((3, 4))
    assert mask[0].tolist() == mask[1].tolist() == [[1, 0, 0]] * 4
    assert mask[2].tolist() == [[1, 0, 0]] * 3 + [[1, 0, 1]]


def test_guidance_steers_away_from_the_negative_prompt(pipeline):
    base = only(pipeline, Request("rain"))
    fog = only(pipeline, Request("rain"), replace(SETTINGS, negative_prompt="fog"))
    assert not np.array_equal(fog.audio, base.audio)
    own = only(pipeline, Request("rain"), replace(SETTINGS, negative_prompt="rain"))
    none = only(pipeline, Request("rain"), replace(SETTINGS, guidance=Guidance("none")))
    assert np.abs(own.audio - none.audio).max() < 1e-4 * np.abs(none.audio).max()


def test_other_sizes_than_the_models_own(pipeline):
    pipeline.clip = replace(pipeline.mova.config.clip, frames=5, height=16, width=32)
    clip = only(pipeline, Request("rain"))
    assert clip.video.shape == (5, 16, 32, 3)
    assert len(clip.audio) == 10000


def test_clips_come_as_their_batch_is_done(pipeline):
    steps = []
    clips = pipeline.generate([Request(c) for c in CAPTIONS], SETTINGS, on_step=steps.append)
    next(clips)
    assert [step.index for step in steps] == [0, 1, 2, 3]


def test_without_a_bridge_the_bridge_is_not_run(pipeline):
    with_bridge = only(pipeline, Request("rain"))
    pipeline.options = LoopOptions(bridge=False)
    without = only(pipeline, Request("rain"))
    assert not np.array_equal(with_bridge.audio, without.audio)
    pipeline.mova.dual_tower_bridge.forward = None
    assert np.array_equal(only(pipeline, Request("rain")).audio, without.audio)


def test_bad_requests_are_refused(pipeline):
    with pytest.raises(MovaError, match="seed must lie between"):
        Request("rain", -1)
    with pytest.raises(MovaError, match="steps must be at least 1"):
        SampleSettings(0)
    with pytest.raises(MovaError, match="batch must be at least 1"):
        next(pipeline.generate([Request("rain")], SETTINGS, batch=0))


def test_nano_has_settings_of_its_own(mova):
    assert default_settings(get_preset("nano")) == SampleSettings(16, Guidance("none"))
    assert default_settings(mova.config) == default_settings(get_preset("mova-360p")) == SampleSettings(50, Guidance())


def test_a_checkpoint_says_how_it_was_trained(run_folder):
    folder = find_model(run_folder)
    facts = trained(folder)
    assert facts.schedule == Schedule(3.0, 2.0, 0.8)
    assert facts.prediction == Prediction("x0", 0.25)
    assert facts.clean_first_frame
    assert facts.bridge
    assert facts.start_frames == 9
    index = json.loads((folder / "model_index.json").read_text())
    del index["_mova_engine"]["diffusion"]["prediction_type"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(MovaError, match="does not say how the model was trained: KeyError"):
        trained(folder)
    del index["_mova_engine"]["diffusion"]
    (folder / "model_index.json").write_text(json.dumps({**index, "boundary_ratio": 0.9}))
    assert trained(folder).schedule == Schedule()
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({"shift": 8.0}))
    assert trained(folder).schedule == Schedule(8.0, 8.0)


@pytest.mark.parametrize("expert", ["device", "host"])
def test_what_is_loaded_samples_like_what_was_saved(pipeline, run_folder, expert):
    pipeline.schedule, pipeline.prediction = Schedule(3.0, 2.0, 0.8), Prediction("x0", 0.25)
    pipeline.options = LoopOptions(clean_first_frame=True)
    loaded = load_pipeline(find_model(run_folder), get_backend("cpu"), memory=MemoryConfig(expert=expert))
    ours, theirs = only(pipeline, Request("rain")), only(loaded, Request("rain"))
    assert np.array_equal(ours.video, theirs.video)
    assert np.allclose(ours.audio, theirs.audio, atol=1e-6)
    bfloat16 = load_pipeline(find_model(run_folder), get_backend("cpu"), dtype=torch.bfloat16)
    assert bfloat16.mova.audio_dit.dtype == torch.bfloat16
    assert only(bfloat16, Request("rain")).video.shape == ours.video.shape


def test_a_pipeline_from_a_folder_makes_clips_when_called(pipeline, run_folder, frame, tmp_path):
    loaded = Pipeline.from_pretrained(run_folder, "cpu")
    options = {"steps": 3, "guidance": Guidance("none")}
    clips = loaded(["rain", "a red ball"], image=frame, seed=7, batch=1, **options)
    alone = loaded("a red ball", image=frame, seed=8, **options)
    assert np.array_equal(clips[1].frames, alone.frames) and np.array_equal(clips[1].audio, alone.audio)
    settings = SampleSettings(3, Guidance("none"))
    expected = only(load_pipeline(find_model(run_folder), get_backend("cpu")), Request("rain", 7, frame), settings)
    first = clips[0]
    assert np.array_equal(first.frames, expected.video) and np.array_equal(first.audio[0], expected.audio)
    assert (first.frames.dtype, first.audio.dtype, first.audio.shape[0]) == (np.uint8, np.float32, 1)
    shape = pipeline.mova.config.clip
    assert (first.fps, first.sample_rate, first.seed, first.prompt) == (shape.fps, shape.sample_rate, 7, "rain")
    path = alone.save(tmp_path / "ball.mp4")
    assert read_clip(path, shape).video.shape == alone.frames.shape
    with pytest.raises(MovaError, match="exists and is not replaced"):
        alone.save(path)
    # A picture of a file is read as the command reads it.
    assert loaded("rain", image=path, **options).frames.shape == alone.frames.shape


@pytest.mark.parametrize(
    "given, says",
    [
        ({"folder": None}, "folder must be str or Path, got None"),
        ({"device": torch.device("cpu")}, "device must be str or None, got device(type='cpu')"),
        ({"dtype": "bfloat16"}, "dtype must be dtype or None, got 'bfloat16'"),
        ({"memory": 12}, "memory must be MemoryConfig or str or None, got 12"),
        ({"ram": 12}, "ram must be str or None, got 12"),
        ({"clip": (352, 640)}, "clip must be ClipSettings or None, got (352, 640)"),
    ],
)
def test_arguments_of_another_kind_are_refused(run_folder, given, says):
    with pytest.raises(MovaError, match=re.escape(f"Pipeline.from_pretrained: {says}")):
        Pipeline.from_pretrained(**{"folder": run_folder, **given})


def test_a_pipeline_is_made_of_a_model_or_from_a_folder(pipeline, run_folder):
    for given in (None, str(run_folder), run_folder):
        with pytest.raises(MovaError, match="Pipeline takes a Mova, got .*: Pipeline.from_pretrained"):
            Pipeline(given)
    with pytest.raises(MovaError, match="Pipeline takes the model's Codecs too: Pipeline.from_pretrained"):
        Pipeline(pipeline.mova)


NOT_FRAMES = {
    "float64 [48, 48, 3]": np.zeros((48, 48, 3)),
    "uint8 [48, 48]": np.zeros((48, 48), np.uint8),
    "uint8 [48, 48, 4]": np.zeros((48, 48, 4), np.uint8),
    "uint8 [0, 48, 3]": np.zeros((0, 48, 3), np.uint8),
    "list": [[0, 0, 0]],
}


@pytest.mark.parametrize("what", NOT_FRAMES)
@pytest.mark.parametrize("name", ["image", "last_image"])
def test_what_is_no_picture_is_refused_before_any_work(pipeline, name, what):
    field = {"image": "first_frame", "last_image": "last_frame"}[name]
    with pytest.raises(
        MovaError, match=re.escape(f"{field} must be a picture as uint8 [height, width, 3], got {what}")
    ):
        pipeline("rain", **{name: NOT_FRAMES[what]})


def test_words_that_cannot_be_used_are_refused_by_the_pipeline_too(pipeline):
    with pytest.raises(MovaError, match="holds half a surrogate pair"):
        pipeline("\ud800")
    with pytest.raises(MovaError, match="a prompt must be a text, got int"):
        pipeline([3])
    with pytest.raises(MovaError, match="a negative prompt has no effect with guidance 'none'"):
        pipeline("rain", guidance=Guidance("none"), negative_prompt="noise")
    with pytest.raises(MovaError, match="the negative prompt holds half a surrogate pair"):
        pipeline("rain", guidance=Guidance("text"), negative_prompt="\ud800")


def test_the_trainers_hook_writes_comparable_samples(pipeline, frame, tmp_path):
    mova = pipeline.mova
    before = {name: parameter.clone() for name, parameter in mova.named_parameters()}
    kwargs = {
        "model": mova,
        "codecs": pipeline.codecs,
        "schedule": Schedule(),
        "prediction": Prediction(),
        "clean_first_frame": True,
        "inputs": [
            encode_samples(pipeline.codecs, pipeline.shape, None, [Prompt(text, frame) for text in CAPTIONS], 3)
        ],
        "out": tmp_path / "step-000010",
    }
    torch.manual_seed(1)
    sheet = make_samples(**kwargs)
    drawn = torch.rand(1)
    assert sheet == tmp_path / "step-000010" / "contact_sheet.png"
    assert [entry.caption for entry in read_metadata(sheet.parent)] == list(CAPTIONS)

    def video(name: str) -> np.ndarray:
        return read_clip(sheet.parent / name, mova.config.clip, silent="zeros").video.astype(int)

    first, stranger = video("000.mp4"), video("001.mp4")
    make_samples(**kwargs)
    # The same clip, though not byte for byte: an encoder makes more of a pixel that rounding moved by one level.
    assert np.abs(video("000.mp4") - first).mean() < 0.05 * np.abs(stranger - first).mean()
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)  # the trainer's generator is left alone
    for name, parameter in mova.named_parameters():
        assert parameter.requires_grad
        assert torch.equal(parameter, before[name])
