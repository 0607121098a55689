"""Wan's autoencoder in tiles: what the whole gives, up to the rounding of convolutions over other sizes."""

import pytest
import torch

from mova_engine.bench.peak_memory import LiveTensors
from mova_engine.codecs.static_tail_cache import same_bits
from mova_engine.codecs.wan import WanVideoCodec
from mova_engine.codecs.wan_tiles import Tiles, decoder_reach, encoder_reach
from mova_engine.config.memory import VAE_OVERLAP, VAE_TILE
from mova_engine.errors import MovaError
from mova_engine.predict import codec_cost

# Of float32 values up to 1, weighted and added.
ROUNDING = 3e-7
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra [codecs])")


@pytest.fixture(scope="module")
def codec():
    """Of the real depth, whose layers see as far, and few channels; in float64, so that a seam is not taken for
    rounding. What it returns is float32.
    """
    torch.manual_seed(0)
    return WanVideoCodec(diffusers.AutoencoderKLWan(base_dim=2, dim_mult=[1, 2, 2, 2]).to(torch.float64))


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_reach_is_that_of_the_released_structure():
    with torch.device("meta"):
        vae = diffusers.AutoencoderKLWan()
    layers = list(vae.encoder.down_blocks)
    above = 1 + max(i for i, layer in enumerate(layers) if hasattr(layer, "resample"))
    # Of the decoder 6 convolutions each at 2, 4 and 8 rows a latent, and those after resampling.
    assert decoder_reach(vae.decoder) == 6 / 2 + 1 / 4 + 6 / 4 + 1 / 8 + 6 / 8 + 1 / 8
    assert max(decoder_reach(vae.decoder), encoder_reach(layers[:above])) <= VAE_OVERLAP / 2
    assert VAE_TILE >= 2 * VAE_OVERLAP


@pytest.mark.parametrize("total, size", [(24, 24), (25, 24), (33, 24), (37, 24), (90, 32), (160, 32), (61, 25)])
def test_spans_cover_everything_once(total, size):
    spans = Tiles(size).spans(total, 5.75)
    assert spans[0].begin == 0 and spans[-1].end == total and all(x.end - x.begin <= size for x in spans)
    for scale in (1, 8):
        parts = torch.zeros(total * scale, dtype=torch.float64)
        for span in spans:
            weights = span.weights(scale).double()
            parts[span.slice(scale)] += weights
            # No part of what is wrong at a tile's edge.
            places = torch.arange(span.begin * scale, span.end * scale) / scale
            wrong = ((span.begin > 0) & (places + 1 / scale <= span.begin + 5.75)) | (
                (span.end < total) & (places >= span.end - 5.75)
            )
            assert (weights[wrong] == 0).all()
        assert torch.allclose(parts, torch.ones_like(parts), atol=1e-6)


@pytest.mark.long
def test_one_tile_is_the_whole_to_the_bit(codec):
    latents, video = drawn(1, 16, 3, 24, 24), drawn(1, 3, 5, 192, 192).clamp(-1, 1)
    whole = codec.decode(latents), codec.encode(video)
    codec.tiles = Tiles(24)
    try:
        assert same_bits(codec.decode(latents), whole[0]) and same_bits(codec.encode(video), whole[1])
    finally:
        codec.tiles = None


@pytest.mark.long
@pytest.mark.parametrize("shape", [(29, 25), (25, 39)])
def test_tiles_are_the_whole_up_to_rounding(codec, shape):
    """Of odd sizes, of which some tiles are in the middle, frame by frame, at seams and elsewhere."""
    latents = drawn(1, 16, 2, *shape)
    whole = codec.decode(latents)
    codec.tiles = Tiles(24)
    try:
        parts = list(codec.decode_frames(latents))
        assert [part.shape[2] for part in parts] == [1, 4]
        assert float((torch.cat(parts, 2) - whole).abs().max()) < ROUNDING
    finally:
        codec.tiles = None


@pytest.mark.long
def test_encoding_in_tiles_too(codec):
    """A moving clip, and a first-frame condition, of which what repeats itself is left out in each tile."""
    moving = drawn(1, 3, 5, 8 * 25, 8 * 29).clamp(-1, 1)
    still = moving.clone()
    still[:, :, 1:] = 0
    for video in (moving, still):
        whole = codec.encode(video)
        codec.tiles = Tiles(24)
        try:
            found = codec.encode(video)
        finally:
            codec.tiles = None
        assert float((found - whole).abs().max()) < ROUNDING


def test_what_does_not_go_is_refused(codec):
    codec.tiles = Tiles(23)
    try:
        with pytest.raises(MovaError, match=r"tiles of 23 latents are too small: .* give 24 at least"):
            codec.decode(drawn(1, 16, 1, 30, 30))
        codec.tiles = Tiles(32)
        with pytest.raises(MovaError, match=r"pictures of 30x31 latents are smaller than a tile of 32"):
            codec.decode(drawn(1, 16, 1, 30, 31))
        with pytest.raises(MovaError, match=r"pictures of 4x8 latents are smaller than a tile of 32"):
            codec.encode(drawn(1, 3, 1, 32, 64))
    finally:
        codec.tiles = None


def test_tiles_change_the_fingerprint(codec):
    plain = codec.fingerprint()
    codec.tiles = Tiles(24)
    tiled = codec.fingerprint()
    codec.tiles = None
    assert tiled != plain == codec.fingerprint()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_working_sets_are_those_of_the_released_structure(dtype):
    """Counted without data: within 5%."""
    with torch.device("meta"):
        vae = diffusers.AutoencoderKLWan().to(dtype)
    height, width, size = 16, 24, torch.empty((), dtype=dtype).element_size()

    def alive(module, shape, caches, index):
        with torch.no_grad(), LiveTensors() as live:
            vae.clear_cache()
            for frame in range(3):
                setattr(vae, index, [0])
                x = torch.empty(shape(frame), device="meta", dtype=dtype)
                made = module(x, feat_cache=getattr(vae, caches), feat_idx=getattr(vae, index)).clamp(-1, 1).float()
        vae.clear_cache()
        assert made.ndim == 5
        return live.peak() / (height * width * 64) / size

    decoded = alive(vae.decoder, lambda _: (1, 16, 1, height, width), "_feat_map", "_conv_idx")
    encoded = alive(
        vae.encoder, lambda i: (1, 3, 4 if i else 1, 8 * height, 8 * width), "_enc_feat_map", "_enc_conv_idx"
    )
    assert decoded == pytest.approx(codec_cost._DECODED, rel=0.05)
    assert encoded == pytest.approx(codec_cost._ENCODED, rel=0.06)
