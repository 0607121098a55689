"""What the released codecs and text encoder cost: FLOPs of encoding a clip, bytes of weights and of their work.

Wan's video encoder (arXiv 2503.20314): causal 3-D convolutions, 96 channels times 1, 2, 4, 4, two residual units each,
halving height and width thrice and frames twice. DAC's (arXiv 2306.06546): 128 channels doubled at strides 2, 3, 4, 5
and 8. UMT5-XXL's encoder (arXiv 2304.09151): 5.68 billion weights.
"""

import math
from dataclasses import dataclass

from mova_engine.config.memory import VAE_OVERLAP, VAE_STRIDE, VAE_TILE
from mova_engine.config.model import ClipConfig, MovaConfig
from mova_engine.config.stages import AUDIO_VAE, TEXT_ENCODER, VIDEO_VAE
from mova_engine.predict.job import WIDTHS, PlannedRun

_WAN_WEIGHTS, _DAC_WEIGHTS, _UMT5_WEIGHTS = 126_892_531, 371_539_137, 5_680_910_336
# Of UMT5: its embedding, the blocks of equal size that it has besides.
_UMT5_EMBEDDING, _UMT5_BLOCKS = 256_384 * 4096, 24
_WAN_CHANNELS, _WAN_MULTIPLES, _WAN_UNITS = 96, (1, 2, 4, 4), 2
_DAC_CHANNELS, _DAC_STRIDES = 128, (2, 3, 4, 5, 8)
# Numbers alive at once for each pixel of a picture while frames are decoded and encoded, causal caches included:
# counted on the real structure without data. Of the decoder: in the layers that see whole pictures where others see
# tiles, in their result, and in the causal caches of those others.
_DECODED, _ENCODED, _FRONT, _FRONT_RESULT, _CACHES = 5085, 3728, 460, 24, 2232
# Bytes of a pixel that x264 holds of the pictures it looks ahead at (measured).
_ENCODER = 230
# Frames that the decoder makes at a time.
_CHUNK = 4


@dataclass(frozen=True)
class EncodeCost:
    """Costs of one clip. video_flops: one encode of all frames. *_weights: number of parameters and buffers.
    text_block: number of parameters of a block of the text encoder. working_bytes: while clips are encoded in bf16.
    """

    video_flops: float
    audio_flops: float
    text_flops: float
    video_weights: int
    audio_weights: int
    text_weights: int
    text_block: int
    working_bytes: float


def encode_cost(model: MovaConfig) -> EncodeCost:
    """The cost of a model's codecs and text encoder; zero for the embedded ones, whose transforms are negligible."""
    if model.video_codec != "wan":
        return EncodeCost(0, 0, 0, 0, 0, 0, 0, 0)
    clip = model.clip
    return EncodeCost(
        video_flops=wan_encoder_flops(clip),
        audio_flops=dac_encoder_flops(clip),
        text_flops=2 * _UMT5_WEIGHTS * model.text_tokens,
        video_weights=_WAN_WEIGHTS,
        audio_weights=_DAC_WEIGHTS,
        text_weights=_UMT5_WEIGHTS,
        text_block=(_UMT5_WEIGHTS - _UMT5_EMBEDDING) // _UMT5_BLOCKS,
        working_bytes=_ENCODED * clip.height * clip.width * WIDTHS["bf16"],
    )


def encoding_bytes(run: PlannedRun) -> float:
    """Bytes at work on the device while sampling encodes pictures."""
    return _working(run, _ENCODED)


def decoding_bytes(run: PlannedRun) -> float:
    """Bytes at work on the device while sampling decodes pictures, those included: a few frames, of the embedded codec
    all.
    """
    clip = run.job.model.clip
    if run.job.model.video_codec != "wan":
        return clip.frames * clip.height * clip.width * 3 * WIDTHS["fp32"]
    return _working(run, _DECODED)


def host_pictures(run: PlannedRun) -> dict[str, float]:
    """Bytes in the host's memory while sampled pictures are decoded and encoded, by part."""
    clip, wan = run.job.model.clip, run.job.model.video_codec == "wan"
    area = clip.height * clip.width
    found: dict[str, float] = {
        "pictures on their way to the file": area * (3 * min(clip.frames, _CHUNK if wan else clip.frames) + _ENCODER)
    }
    if run.policy.vae == "tiles":
        found["causal caches of tiles"] = _CACHES * run.job.width * _overlapping(clip)
    return found


def _working(run: PlannedRun, numbers: float) -> float:
    clip = run.job.model.clip
    if run.job.model.video_codec != "wan":
        return 0.0
    area, width = clip.height * clip.width, run.job.width
    if run.policy.vae != "tiles":
        # Processes that make a clip together decode some of its rows each.
        return numbers * width * area / (run.layout.cfg * run.layout.context_parallel)
    side = VAE_TILE * VAE_STRIDE
    tile = min(clip.height, side) * min(clip.width, side)
    whole = _FRONT_RESULT * width * area + _CHUNK * 3 * WIDTHS["fp32"] * area
    return max(numbers * width * tile + whole, _FRONT * width * area)


def _overlapping(clip: ClipConfig) -> float:
    """Pixels of all tiles of a picture."""
    found = 1.0
    for size in (clip.height, clip.width):
        total = size / VAE_STRIDE
        count = math.ceil((total - VAE_OVERLAP) / (VAE_TILE - VAE_OVERLAP)) if total > VAE_TILE else 1
        found *= size + (count - 1) * VAE_OVERLAP * VAE_STRIDE
    return found


def codec_bytes(run: PlannedRun) -> dict[str, float]:
    """Bytes of a run's codecs and text encoder by part. The audio codec computes in float32, the others in bf16 in
    training and in the run's precision in sampling.

    Of the processes that make a clip together, one has the text encoder and another one the audio codec. The larger
    one counts: the first.
    """
    job, layout, cost = run.job, run.layout, encode_cost(run.job.model)
    width = WIDTHS["bf16"] if job.training else job.width
    alone = job.training or layout.cfg * layout.context_parallel == 1
    found: dict[str, float] = {TEXT_ENCODER: cost.text_weights * width}
    if "video_dit" in job.components:
        found[VIDEO_VAE] = cost.video_weights * width
    if "audio_dit" in job.components and alone:
        found[AUDIO_VAE] = cost.audio_weights * WIDTHS["fp32"]
    return found


def streamed_text_bytes(run: PlannedRun) -> tuple[float, float]:
    """Of a text encoder whose blocks come from its files (`memory.streamed_encoder`): bytes of what is no block, bytes
    of a block.
    """
    cost, width = encode_cost(run.job.model), run.job.width
    return (cost.text_weights - _UMT5_BLOCKS * cost.text_block) * width, cost.text_block * width


def wan_encoder_flops(clip: ClipConfig) -> float:
    """One pass of Wan's video encoder over a clip."""
    frames, height, width = clip.frames, clip.height, clip.width
    channels = _WAN_CHANNELS
    flops = 2 * 27 * 3 * channels * frames * height * width
    for level, multiple in enumerate(_WAN_MULTIPLES):
        voxels = frames * height * width
        for _ in range(_WAN_UNITS):
            out = _WAN_CHANNELS * multiple
            shortcut = channels * out if channels != out else 0
            flops += 2 * voxels * (27 * channels * out + 27 * out * out + shortcut)
            channels = out
        if level < len(_WAN_MULTIPLES) - 1:
            height, width = height // 2, width // 2
            flops += 2 * 9 * channels**2 * frames * height * width
            if level > 0:  # frames too, from the second halving on
                frames = (frames - 1) // 2 + 1
                flops += 2 * 3 * channels**2 * frames * height * width
    # Two residual units, one attention within each frame, the last convolution to 32 channels.
    products = (4 * 27 + 4) * channels**2 + 2 * channels * height * width + 27 * channels * 32
    return flops + 2 * products * frames * height * width


def dac_encoder_flops(clip: ClipConfig) -> float:
    """One pass of MOVA's audio encoder over a clip's samples."""
    rate, channels = float(clip.audio_samples), _DAC_CHANNELS
    flops = 2 * 7 * channels * rate
    for stride in _DAC_STRIDES:
        flops += 2 * rate * 3 * (7 + 1) * channels**2  # three units of a k7 and a k1 convolution
        rate /= stride
        flops += 2 * rate * 2 * stride * channels * 2 * channels  # kernel 2 x stride, channels doubled
        channels *= 2
    return flops
