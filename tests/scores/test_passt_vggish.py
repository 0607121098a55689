"""PaSST and VGGish, of which no run is recorded: held to published counts, shapes and a second way to compute them."""

import numpy as np
import pytest
import torch
from torch import nn

from mova_engine.errors import MovaError
from mova_engine.scores.networks.passt import Passt, PasstSizes, passt_spectrum
from mova_engine.scores.networks.vggish import Vggish, vggish_examples


def noise(count, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 0.1, count).astype(np.float32))


def triangles(bands, low, high, bins, rate):
    """Filters [bins, bands] between edges that are equally far apart in mel, straight in mel."""
    mel = lambda f: 1127 * np.log1p(np.asarray(f) / 700)  # noqa: E731
    edges = np.linspace(mel(low), mel(high), bands + 2)
    at = mel(np.arange(bins) * rate / 2 / (bins - 1))
    return np.stack([np.interp(at, edges[i : i + 3], [0, 1, 0], left=0, right=0) for i in range(bands)], 1)


def test_official_names_shapes_and_parameter_counts():
    with torch.device("meta"):
        vggish, passt = Vggish().state_dict(), Passt().state_dict()
    assert sum(x.numel() for x in vggish.values()) == 72_141_184
    convolutions = {f"features.{i}.weight": tuple(vggish[f"features.{i}.weight"].shape) for i in (0, 3, 6, 8, 11, 13)}
    channels = [(64, 1), (128, 64), (256, 128), (256, 256), (512, 256), (512, 512)]
    assert list(convolutions.values()) == [(*each, 3, 3) for each in channels]
    assert [tuple(vggish[f"embeddings.{i}.weight"].shape) for i in (0, 2, 4)] == [
        (4096, 12288),
        (4096, 4096),
        (128, 4096),
    ]
    assert len(vggish) == 18
    block = 12 * 768**2 + 13 * 768
    heads = 2 * (768 * 527 + 527) + 2 * 768
    tokens = 4 * 768 + 768 * (12 + 99)
    assert sum(x.numel() for x in passt.values()) == 12 * block + heads + tokens + 2 * 768 + 768 * 16 * 16 + 768
    named = {"time_new_pos_embed": (1, 768, 1, 99), "freq_new_pos_embed": (1, 768, 12, 1), "head.1.weight": (527, 768)}
    named |= {"patch_embed.proj.weight": (768, 1, 16, 16), "blocks.11.attn.qkv.weight": (2304, 768)}
    assert {name: tuple(passt[name].shape) for name in named} == named
    assert {"cls_token", "dist_token", "new_pos_embed", "head_dist.bias", "blocks.0.mlp.fc2.bias"} <= passt.keys()


def test_vggish_s_examples_are_log_mel_magnitudes_of_frames_that_begin_with_the_sound():
    sound = noise(32000)
    made = vggish_examples(sound)
    assert made.shape == (2, 96, 64)
    x = sound.double().numpy()
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    bank = triangles(64, 125, 7500, 257, 16000)
    for example, frame in ((0, 0), (0, 95), (1, 7)):
        start = 160 * (96 * example + frame)
        magnitude = np.abs(np.fft.rfft(x[start : start + 400] * window, 512))
        np.testing.assert_allclose(made[example, frame], np.log(magnitude @ bank + 0.01), atol=2e-4)
    assert vggish_examples(torch.zeros(16000)).unique().tolist() == [pytest.approx(np.log(0.01))]
    assert len(vggish_examples(noise(128000))) == 8
    with pytest.raises(MovaError, match=r"0\.96 s at a time"):
        vggish_examples(noise(400 + 95 * 160 - 1))


def test_passt_s_spectrum_is_of_the_emphasised_sound():
    sound = noise(32000)
    made = passt_spectrum(sound)
    assert made.shape == (128, 100)
    x = sound.double().numpy()
    emphasised = np.pad(x[1:] - 0.97 * x[:-1], 512, mode="reflect")
    window = np.zeros(1024)
    window[112:912] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(800) / 799)
    bank = triangles(128, 0, 15000, 513, 32000)
    for frame in (0, 40, 99):
        power = np.abs(np.fft.rfft(emphasised[320 * frame : 320 * frame + 1024] * window)) ** 2
        np.testing.assert_allclose(made[:, frame], (np.log(power @ bank + 1e-5) + 4.5) / 5, atol=2e-3)
    assert passt_spectrum(noise(320000)).shape == (128, 1000)  # 99 patches of 16 columns, 10 apart
    with pytest.raises(MovaError, match="too few for PaSST"):
        passt_spectrum(noise(1000))


@torch.no_grad()
def test_passt_is_a_transformer_of_patches_and_two_tokens():
    """Against torch's own encoder layer with the same weights."""
    torch.manual_seed(0)
    network = Passt(PasstSizes(width=24, depth=2, heads=3, classes=5)).eval()
    for name, x in network.state_dict().items():
        x.copy_(torch.randn_like(x) * 0.2 + (1.0 if "norm" in name and "weight" in name else 0.0))
    spectra = torch.randn(2, 128, 300)
    found = network(spectra)
    patches = nn.functional.unfold(spectra[:, None], 16, stride=10)  # [2, 256, 12 x 29], rows slowest
    weights = dict(network.named_parameters())
    x = patches.transpose(1, 2) @ weights["patch_embed.proj.weight"].flatten(1).T + weights["patch_embed.proj.bias"]
    place = weights["freq_new_pos_embed"][0, :, :, 0].T[:, None] + weights["time_new_pos_embed"][0, :, 0, :29].T[None]
    tokens = torch.cat((weights["cls_token"], weights["dist_token"]), 1) + weights["new_pos_embed"]
    x = torch.cat((tokens.expand(2, -1, -1), x + place.flatten(0, 1)), 1)
    for i in range(2):
        layer = nn.TransformerEncoderLayer(24, 3, 96, 0.0, "gelu", 1e-6, True, True).eval()
        own = {name.removeprefix(f"blocks.{i}."): w for name, w in weights.items() if name.startswith(f"blocks.{i}.")}
        names = {"self_attn.in_proj_weight": "attn.qkv.weight", "self_attn.in_proj_bias": "attn.qkv.bias"}
        names |= {f"self_attn.out_proj.{kind}": f"attn.proj.{kind}" for kind in ("weight", "bias")}
        names |= {f"linear{n}.{kind}": f"mlp.fc{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
        layer.load_state_dict({name: own[names.get(name, name)] for name in layer.state_dict()})
        x = layer(x)
    x = nn.functional.layer_norm(x, (24,), weights["norm.weight"], weights["norm.bias"], 1e-6)
    features = x[:, :2].mean(1)
    torch.testing.assert_close(found.embedding, features, rtol=1e-4, atol=1e-5)
    logits = nn.functional.layer_norm(features, (24,), weights["head.0.weight"], weights["head.0.bias"], 1e-5)
    logits = logits @ weights["head.1.weight"].T + weights["head.1.bias"]
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(MovaError, match="10 s at most"):
        network(torch.randn(1, 128, 1010))


@torch.no_grad()
def test_vggish_reads_places_before_channels():
    """The layers one by one, with the flattening of the TensorFlow model: [time, band, channel]."""
    torch.manual_seed(0)
    network = Vggish((2, 3, 4, 5), 6)
    x = torch.randn(2, 96, 64)
    maps = x[:, None]
    for i, pool in ((0, True), (3, True), (6, False), (8, True), (11, False), (13, True)):
        maps = nn.functional.conv2d(maps, network.features[i].weight, network.features[i].bias, padding=1).relu()
        maps = nn.functional.max_pool2d(maps, 2) if pool else maps
    flat = torch.stack([maps[:, :, t, b] for t in range(6) for b in range(4)], 1).flatten(1)
    for i in (0, 2, 4):
        flat = flat @ network.embeddings[i].weight.T + network.embeddings[i].bias
        flat = flat if i == 4 else flat.relu()
    torch.testing.assert_close(network(x), flat)
    assert (flat < 0).any()  # no ReLU after the last layer
