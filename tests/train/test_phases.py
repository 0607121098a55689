"""MOVA's three phases of joint training, assembled from each other's folders, without weights."""

from pathlib import Path

import pytest

from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import Codecs, stated_clip
from mova_engine.config.clip import ClipSettings
from mova_engine.config.model import get_preset
from mova_engine.config.recipes import load_config
from mova_engine.config.train import TrainConfig
from mova_engine.errors import MovaError
from mova_engine.models.mova import Mova
from mova_engine.ops import bind
from mova_engine.train.model_setup import export_model, model_config, with_folders

OPS = bind(get_backend("cpu"))
PHASES = ("joint-phase1", "joint-phase2", "joint-phase3")
# Frames, height, width, video tokens, audio tokens.
P360 = (193, 352, 640, 49 * 22 * 40, 403)
P720 = (193, 720, 1280, 49 * 45 * 80, 403)


def saved(config: TrainConfig, folder: Path) -> Path:
    """What the run would save, but for the weights."""
    model = Mova(model_config(config), OPS, "meta")
    folder.mkdir()
    export_model(model, Codecs(None, None, None), config, folder, write=lambda path, tensors: None)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A folder of each phase, each run started from the one before, and what it was told."""
    root = tmp_path_factory.mktemp("phases")
    found = {"start": saved(load_config("joint-phase1"), root / "start")}
    for phase, before in zip(PHASES, ("start", *PHASES), strict=False):
        found[phase] = saved(load_config(phase, model={"checkpoint": found[before]}), root / phase)
    return found


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("source", ["start", *PHASES])
def test_a_phase_trains_at_its_own_size_whatever_folder_it_starts_from(folders, source, phase):
    said: list[str] = []
    config = with_folders(load_config(phase, model={"checkpoint": folders[source]}), said.append)
    clip = model_config(config).clip
    wanted = P720 if phase == "joint-phase3" else P360
    assert (clip.frames, clip.height, clip.width, clip.video_tokens, clip.audio_tokens) == wanted
    assert clip.fps == 24 and stated_clip(folders[phase]) == clip
    made = stated_clip(folders[source])
    if made == clip:
        assert said == []
    else:
        sizes = f"was made for 193 frames of {made.height}x{made.width} at 24 fps; this run takes 193 frames of "
        assert len(said) == 1 and f"{sizes}{clip.height}x{clip.width}" in said[0]


def test_the_command_line_has_the_last_word_on_the_size(folders):
    model = {"checkpoint": folders["joint-phase3"]}
    clip = model_config(load_config("joint-phase2", model=model, clip={"frames": 97, "height": 720})).clip
    assert (clip.frames, clip.height, clip.width) == (97, 720, 640)
    assert model_config(load_config("lora", model=model)).clip == get_preset("mova-720p").clip, "none is stated"


@pytest.mark.parametrize("wrong", [{"frames": 10}, {"height": 40}, {"width": 0}, {"fps": 0.0}])
def test_a_size_that_no_model_takes_is_refused_when_it_is_stated(wrong):
    with pytest.raises(MovaError, match=next(iter(wrong))):
        ClipSettings(**wrong)
