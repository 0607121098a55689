"""MOVA's three phases of joint training, assembled from each other's folders, without weights."""

from pathlib import Path

import pytest

from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import Codecs, stated_clip
from mova_engine.config.clip import ClipSettings
from mova_engine.config.mesh import MeshShape, accumulation, choose_mesh
from mova_engine.config.model import get_preset
from mova_engine.config.recipes import load_config
from mova_engine.config.train import TrainConfig
from mova_engine.errors import MovaError
from mova_engine.models.mova import Mova
from mova_engine.ops import bind
from mova_engine.train.__main__ import main
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
    export_model(model, Codecs(None, None, None), config, folder, 0, write=lambda path, tensors: None)
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


# The published runs, arXiv 2602.08794: clips a step, and the clips of one epoch (61,500 h, 16.8 million, 11,000 h).
CLIP_HOURS = 8.05 / 3600
PUBLISHED = {
    "joint-phase1": (128, 61_500 / CLIP_HOURS),
    "joint-phase2": (128, 16.8e6),
    "joint-phase3": (64, 11_000 / CLIP_HOURS),
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("devices", [1024, 16])
def test_a_phase_takes_the_published_clips_over_any_number_of_devices(phase, devices):
    config = load_config(phase)
    parallel = config.parallel
    mesh = choose_mesh(devices, 40, context_parallel=parallel.context_parallel, dp_replicate=parallel.replicate)
    clips, epoch = PUBLISHED[phase]
    assert config.clips_per_step(mesh) == clips
    assert config.micro_batches(mesh) == (1 if devices == 1024 else 64)
    assert config.micro_batches(mesh) * config.loader.batch * devices == clips * parallel.context_parallel
    assert config.steps * clips == pytest.approx(epoch, rel=3e-3), "one epoch"


def test_without_a_global_batch_a_step_is_one_micro_batch_of_each_group():
    nano = load_config("nano")
    assert nano.clips_per_step(MeshShape()) == 8 and nano.clips_per_step(MeshShape(dp_shard=3, ulysses=2)) == 24
    assert nano.micro_batches(MeshShape(dp_shard=3)) == 1


@pytest.mark.parametrize(
    ("mesh", "clips", "batch", "settings", "words"),
    [
        (
            MeshShape(dp_shard=8, ulysses=8),
            4,
            1,
            {},
            "global_batch_size 4 is no multiple of 8, the clips of 8 groups of processes with loader.batch 1. Nearest "
            "that fit: --parallel.context-parallel 16; --parallel.context-parallel 32; --parallel.context-parallel 64; "
            "--global-batch-size 8",
        ),
        (
            MeshShape(),
            12,
            8,
            {},
            "global_batch_size 12 is no multiple of 8, the clips of 1 group of processes with loader.batch 8. Nearest "
            "that fit: --loader.batch 6; --global-batch-size 8; --global-batch-size 16",
        ),
        (
            MeshShape(dp_replicate=2, dp_shard=2),
            6,
            1,
            {"replicate": 2},
            "global_batch_size 6 is no multiple of 4, the clips of 4 groups of processes with loader.batch 1. Nearest "
            "that fit: --parallel.context-parallel 2; --global-batch-size 4; --global-batch-size 8",
        ),
        (
            MeshShape(dp_shard=4),
            6,
            1,
            {"sharing": False},
            "global_batch_size 6 is no multiple of 4, the clips of 4 groups of processes with loader.batch 1. Nearest "
            "that fit: --global-batch-size 4; --global-batch-size 8",
        ),
    ],
)
def test_a_mesh_that_does_not_divide_the_clips_names_the_nearest_that_do(mesh, clips, batch, settings, words):
    with pytest.raises(MovaError) as error:
        accumulation(mesh, clips, batch, **settings)
    assert str(error.value) == words


def test_a_run_is_refused_before_anything_is_encoded(tmp_path):
    with pytest.raises(MovaError, match="global_batch_size 3 is no multiple of 2, .*--loader.batch 1"):
        main(["--global-batch-size", "3", "--loader.batch", "2", "--device", "cpu", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
