"""The adapter of diffusers' AutoencoderKLWan, on a tiny random one written and read as a checkpoint's folder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from mova_engine.backend import NAMES, describe_backend
from mova_engine.codecs import VideoCodec, build_video_codec
from mova_engine.codecs.static_tail_cache import same_bits
from mova_engine.codecs.toy.latent_stats import WAN_STATS, LatentStats
from mova_engine.codecs.wan import WanVideoCodec
from mova_engine.errors import MovaError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra [codecs])")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    folder = tmp_path_factory.mktemp("wan") / "video_vae"
    vae.save_pretrained(folder)
    return folder


def clip(frames: int = 5) -> torch.Tensor:
    return torch.rand(1, 3, frames, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_it_equals_diffusers_own_calls(folder: Path) -> None:
    from diffusers import AutoencoderKLWan

    codec = build_video_codec("wan", folder, dtype=torch.float32)
    assert isinstance(codec, VideoCodec)
    vae = AutoencoderKLWan.from_pretrained(folder).eval()
    mean, std = (torch.tensor(v).view(1, 16, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        raw = vae.encode(clip()).latent_dist.mode()
        decoded = vae.decode(raw).sample
    latents = codec.encode(clip())
    assert latents.shape == (1, 16, 2, 2, 3)
    torch.testing.assert_close(latents, (raw - mean) / std)
    torch.testing.assert_close(codec.decode(latents), decoded, atol=1e-5, rtol=1e-5)
    assert not latents.requires_grad


class Layouts(TorchDispatchMode):
    """Collects whether input and weight of every convolution lie in memory in the order of their dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator is torch.ops.aten.convolution.default:
            self.seen.append(all(x.is_contiguous() for x in args[:2]))
        return operator(*args, **kwargs or {})


@pytest.mark.parametrize("frames", [1, 5, 13])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frames_come_as_they_are_made_and_are_those_of_the_whole_to_the_bit(folder: Path, dtype, frames) -> None:
    codec = build_video_codec("wan", folder, dtype=dtype)
    latents = codec.encode(clip(frames))
    assert same_bits(latents, encoded_in_full(codec, clip(frames)))
    with torch.no_grad():
        whole = codec.vae.decode(codec._place(codec.stats.denormalise(latents))).sample.float()
    parts = []
    for part in codec.decode_frames(latents):
        parts.append(part)
        # Another clip begun meanwhile would be an error of its caller: there is one cache.
        assert len(parts) == 1 or part.shape[2] == 4
    assert same_bits(torch.cat(parts, 2), whole) and same_bits(codec.decode(latents), whole)
    assert len(parts) == (frames + 3) // 4


def test_convolutions_get_contiguous_memory_where_they_need_it(folder: Path, monkeypatch) -> None:
    """Whatever the clip's memory is like: NPUs fail on channels that come last."""
    monkeypatch.setattr("mova_engine.backend.cpu.CpuBackend.channels_last", False)
    codec = build_video_codec("wan", folder, dtype=torch.float32)
    video = clip(9).to(memory_format=torch.channels_last_3d)
    assert not video.is_contiguous()
    with Layouts() as layouts:
        codec.decode(codec.encode(video).to(memory_format=torch.channels_last_3d))
    assert len(layouts.seen) > 100 and all(layouts.seen), f"{layouts.seen.count(False)} of {len(layouts.seen)}"


def test_contiguity_is_the_npus_alone(folder: Path) -> None:
    """Where convolutions take channels that come last, no clip is copied for them; `layouts.seen` has all inputs."""
    assert [name for name in NAMES if not describe_backend(name).channels_last] == ["npu"]
    codec = build_video_codec("wan", folder, dtype=torch.float32)
    with Layouts() as layouts:
        codec.decode(codec.encode(clip(9).to(memory_format=torch.channels_last_3d)))
    assert not all(layouts.seen)


def test_dtype_and_fingerprint(folder: Path) -> None:
    codec, half = (build_video_codec("wan", folder, dtype=dtype) for dtype in (torch.float32, None))
    assert half.vae.dtype == torch.bfloat16
    latents = half.encode(clip())
    assert latents.dtype == half.decode(latents).dtype == torch.float32
    torch.testing.assert_close(latents, codec.encode(clip()), atol=0.05, rtol=0.05)
    assert (
        half.fingerprint() != codec.fingerprint() == build_video_codec("wan", folder, dtype=torch.float32).fingerprint()
    )
    assert codec.state() == {}


def condition(frames: int, last: bool = False) -> torch.Tensor:
    """A picture, then zeros; `last`: and a picture."""
    video = clip(frames)
    video[:, :, 1 : -1 if last else None] = 0
    return video


def encoded_in_full(codec: WanVideoCodec, video: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return codec.stats.normalise(codec.vae.encode(codec._place(video)).latent_dist.mode().float())


def outputs_of(codec: WanVideoCodec, video: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The latents and how many convolutions it took."""
    calls = []
    layers = [x for x in codec.vae.encoder.modules() if isinstance(x, torch.nn.Conv2d | torch.nn.Conv3d)]
    hooks = [layer.register_forward_hook(lambda *_: calls.append(1)) for layer in layers]
    try:
        return codec.encode(video), len(calls)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("video", "share"),
    [
        (condition(5), 1),
        # The layers before the first halving of time come to rest after 5 chunks, the last after 29.
        (condition(17), 0.98),
        (condition(161), 0.5),
        (condition(65, last=True), 0.75),
        (clip(1).expand(1, 3, 65, 16, 24).contiguous(), 0.75),
        (clip(33), 1),
    ],
    ids=["one chunk", "four chunks", "to rest", "last frame", "still", "moving"],
)
def test_what_repeats_is_encoded_once_and_comes_out_the_same_to_the_bit(folder: Path, dtype, video, share) -> None:
    codec = build_video_codec("wan", folder, dtype=dtype)
    full = encoded_in_full(codec, video)
    latents, convolutions = outputs_of(codec, video)
    assert same_bits(latents, full)
    _, every = outputs_of(codec, clip(video.shape[2]))
    assert convolutions <= share * every and (share < 1 or convolutions == every)
    assert all("forward" not in vars(layer) for layer in codec.vae.encoder.modules())


def test_a_device_that_does_not_repeat_itself_computes_everything(folder: Path) -> None:
    codec = build_video_codec("wan", folder, dtype=torch.float32)
    count = iter(range(10**6))
    # The last bits change from call to call, as sums in no fixed order would have it.
    codec.vae.encoder.down_blocks[0].register_forward_hook(lambda layer, args, out: out * (1 + 1e-6 * next(count)))
    calls = []
    codec.vae.encoder.down_blocks[2].conv1.register_forward_hook(lambda *_: calls.append(1))
    codec.encode(condition(81))
    assert len(calls) == 21


def test_an_error_leaves_the_encoder_as_it_was(folder: Path) -> None:
    codec = build_video_codec("wan", folder, dtype=torch.float32)
    hook = codec.vae.encoder.mid_block.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        codec.encode(condition(9))
    hook.remove()
    assert same_bits(codec.encode(condition(9)), encoded_in_full(codec, condition(9)))


def test_wrong_input_is_refused(folder: Path) -> None:
    codec = build_video_codec("wan", folder, dtype=torch.float32)
    with pytest.raises(MovaError, match="4n.1 frames"):
        codec.encode(clip(6))
    with pytest.raises(MovaError, match="multiples of 8 and 8"):
        codec.encode(clip()[..., :20])
    with pytest.raises(MovaError, match="batch, 16, t, h, w"):
        codec.decode(torch.zeros(1, 8, 2, 2, 2))


def test_folders_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights.pop("quant_conv.bias")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(MovaError, match="1 missing .quant_conv.bias"):
        build_video_codec("wan", tmp_path)
    with pytest.raises(MovaError, match="nowhere is not a folder"):
        build_video_codec("wan", tmp_path / "nowhere")
    with pytest.raises(MovaError, match="none was given"):
        build_video_codec("wan")


def test_normalisation_equals_the_reference(repo_root: Path) -> None:
    golden = repo_root / "tests" / "data" / "golden"
    config = json.loads((golden / "case8_first_frame_condition.json").read_text())["config"]
    case = load_file(golden / "case8_first_frame_condition.safetensors")
    stats = LatentStats(tuple(config["latents_mean"]), tuple(config["latents_std"]))
    assert stats == WAN_STATS
    normalised = stats.normalise(case["in.image_latent_raw"])
    for value, name in (
        (normalised, "normalized_image_latent"),
        (stats.denormalise(normalised), "denormalized_roundtrip"),
    ):
        reference = case[f"out.{name}"]
        assert (value - reference).abs().max() / reference.abs().max() < 1e-6, name
