"""The DAC audio VAE: equal to the recorded reference with and without weight norm, strict loading, its codec."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mova_engine.codecs import AudioCodec, build_audio_codec
from mova_engine.codecs.dac import Dac, DacCodec, DacConfig, load_dac
from mova_engine.codecs.dac_layers import Conv1d, ConvTranspose1d, Snake
from mova_engine.errors import MovaError

TINY = DacConfig(encoder_dim=2, encoder_rates=(2, 3), latent_dim=6, decoder_dim=8, decoder_rates=(3, 2))
VARIANTS = ("fused", "weight_norm")


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    """max |difference| / max |reference|."""
    return ((value - reference).abs().max() / reference.abs().max()).item()


def write_folder(folder: Path, dac: Dac) -> Path:
    """A component's folder as the released checkpoint has it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "DAC", **asdict(dac.config)}))
    save_file(dac.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    return folder


def recorded(repo_root: Path, variant: str) -> tuple[Dac, dict[str, torch.Tensor]]:
    golden = repo_root / "tests" / "data" / "golden"
    config = json.loads((golden / f"case6_audio_vae_{variant}.json").read_text())["config"]
    dac = Dac(DacConfig.from_dict(config))
    dac.load_state_dict(load_file(golden / f"weights_audio_vae_{variant}.safetensors"))
    return dac, load_file(golden / f"case6_audio_vae_{variant}.safetensors")


@torch.no_grad()
@pytest.mark.parametrize("fuse", [False, True], ids=["as stored", "fused here"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_reproduces_the_reference(repo_root: Path, variant: str, fuse: bool) -> None:
    dac, case = recorded(repo_root, variant)
    if fuse:
        dac.fuse_weight_norm()
        assert not any("weight_g" in name for name in dac.state_dict())
    states: dict[str, torch.Tensor] = {}
    watched = {
        "mid.encoder.block1": dac.encoder.block[1],
        "mid.encoder": dac.encoder,
        "mid.decoder.model0": dac.decoder.model[0],
        "mid.decoder.model1": dac.decoder.model[1],
    }
    for name, module in watched.items():
        module.register_forward_hook(lambda _module, _args, out, name=name: states.__setitem__(name, out))
    posterior = dac.encode(case["in.audio"])
    outputs = {
        "out.mean": posterior.mean,
        "out.logvar": posterior.logvar,
        "out.decode_mean": dac.decode(posterior.mean),
    }
    outputs |= states
    outputs["out.decode_z"] = dac.decode(case["in.z"])
    assert dac.pad(case["in.audio"]).shape[-1] == case["out.padded_length"].item()
    for name, value in outputs.items():
        assert value.shape == case[name].shape, name
        assert relative(value, case[name]) < (5e-5 if "decode" in name else 1e-5), name


def test_layers_follow_their_formulas() -> None:
    x = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0))
    snake = Snake(3)
    snake.alpha.data = torch.tensor([0.5, 1.0, 2.0]).view(1, 3, 1)
    torch.testing.assert_close(snake(x), x + torch.sin(snake.alpha * x) ** 2 / snake.alpha)
    # Weight norm: each slice along the first dimension has the length that weight_g says.
    for layer in (Conv1d(3, 4, 7, weight_norm=True), ConvTranspose1d(3, 4, stride=3, weight_norm=True)):
        layer.weight_g.data.uniform_(0.5, 2)
        before = layer(x)
        torch.testing.assert_close(layer.kernel().flatten(1).norm(dim=1), layer.weight_g.flatten())
        layer.fuse_weight_norm()
        assert set(dict(layer.named_parameters())) == {"weight", "bias"}
        torch.testing.assert_close(layer(x), before)
    assert ConvTranspose1d(3, 4, stride=3, weight_norm=False)(x).shape == (2, 4, 36)
    assert Conv1d(3, 4, 10, stride=5, weight_norm=False)(torch.zeros(1, 3, 20)).shape == (1, 4, 4)


def test_the_released_size_builds_without_memory() -> None:
    dac = Dac(DacConfig(), device="meta")
    names = dac.state_dict()
    assert DacConfig().hop == 960
    assert names["encoder.block.5.block.4.weight"].shape == (4096, 2048, 16)
    assert names["decoder.model.1.block.1.weight"].shape == (2048, 1024, 16)
    assert names["quant_conv.weight"].shape == (256, 128, 1)
    assert sum(p.numel() for p in dac.parameters()) == 371_539_137
    posterior = dac.encode(torch.empty(1, 1, 2000, device="meta"))
    assert posterior.mean.shape == (1, 128, 3)
    assert dac.decode(posterior.mean).shape == (1, 1, 2880)


@pytest.mark.parametrize("weight_norm", [False, True])
def test_either_stored_form_loads_whatever_the_configuration_says(tmp_path: Path, weight_norm: bool) -> None:
    dac = Dac(replace(TINY, use_weight_norm=weight_norm))
    folder = write_folder(tmp_path / "audio_vae", dac)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "use_weight_norm": not weight_norm}))
    loaded = load_dac(folder)
    assert loaded.config == dac.config
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in dac.state_dict().items())
    audio = torch.randn(1, 1, 25)
    torch.testing.assert_close(loaded.encode(audio).mean, dac.encode(audio).mean)


def test_the_codec_pads_encodes_and_decodes(tmp_path: Path) -> None:
    dac = Dac(replace(TINY, use_weight_norm=True))
    codec = build_audio_codec("dac", write_folder(tmp_path / "audio_vae", dac))
    assert isinstance(codec, AudioCodec)
    assert (codec.hop, codec.channels, codec.sample_rate) == (6, 6, 48000)
    audio = torch.randn(2, 1, 25, generator=torch.Generator().manual_seed(0))
    latents = codec.encode(audio)
    assert latents.shape == (2, 6, 5)
    assert not latents.requires_grad
    torch.testing.assert_close(latents, codec.encode(torch.nn.functional.pad(audio, (0, 5))))
    torch.testing.assert_close(latents, dac.encode(audio).mean.detach())
    assert codec.decode(latents).shape == (2, 1, 30)
    assert codec.state() == {}
    half = build_audio_codec("dac", tmp_path / "audio_vae", dtype=torch.bfloat16)
    assert half.encode(audio).dtype == torch.float32
    assert half.fingerprint() != codec.fingerprint()


def test_a_changed_weight_changes_the_fingerprint() -> None:
    torch.manual_seed(1)
    dac = Dac(TINY)
    before = DacCodec(dac).fingerprint()
    assert DacCodec(dac).fingerprint() == before
    dac.decoder.model[0].bias.data.add_(1e-3)
    assert DacCodec(dac).fingerprint() != before


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "audio_vae", Dac(TINY))
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    weights.pop("quant_conv.bias")
    weights["quant_conv.gain"] = torch.ones(1)
    weights["post_quant_conv.bias"] = torch.ones(2)
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(MovaError) as error:
        load_dac(folder)
    for part in ("quant_conv.bias", "quant_conv.gain", "post_quant_conv.bias is [2], the model needs [6]"):
        assert part in str(error.value)
    with pytest.raises(MovaError, match="nowhere is not a folder"):
        build_audio_codec("dac", tmp_path / "nowhere")
    with pytest.raises(MovaError, match="none was given"):
        build_audio_codec("dac")


def test_configurations(caplog: pytest.LogCaptureFixture) -> None:
    released = {"_class_name": "DAC", "encoder_rates": [2, 3, 4, 5, 8], "codebook_size": 1024, "latent_dim": 128}
    assert DacConfig.from_dict(released) == DacConfig()
    assert (
        DacConfig.from_dict(
            {"encoder_dim": 4, "encoder_rates": [2, 4], "decoder_rates": [8], "latent_dim": None}
        ).latent_dim
        == 16
    )
    DacConfig.from_dict({"lstm_layers": 2})
    assert "settings not used: lstm_layers" in caplog.text
    with pytest.raises(MovaError, match="vector-quantised"):
        DacConfig.from_dict({"continuous": False})
    with pytest.raises(MovaError, match="different products"):
        DacConfig(decoder_rates=(8, 5))
    with pytest.raises(MovaError, match="cannot be halved 5 times"):
        DacConfig(decoder_dim=48)


@pytest.mark.parametrize("shape", [(1, 2, 960), (960,), (1, 1, 0)])
def test_wrong_sounds_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MovaError, match="batch, 1, samples"):
        DacCodec(Dac(TINY)).encode(torch.zeros(shape))


def test_wrong_latents_are_refused() -> None:
    with pytest.raises(MovaError, match="batch, 6, t"):
        DacCodec(Dac(TINY)).decode(torch.zeros(1, 128, 3))
