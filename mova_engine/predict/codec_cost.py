"""What the released codecs and text encoder cost: FLOPs of encoding a clip, bytes of weights and of their work.

Wan's video encoder (arXiv 2503.20314): causal 3-D convolutions, 96 channels times 1, 2, 4, 4, two residual units each,
halving height and width thrice and frames twice. DAC's (arXiv 2306.06546): 128 channels doubled at strides 2, 3, 4, 5
and 8. UMT5-XXL's encoder (arXiv 2304.09151): 5.68 billion weights.
"""

from dataclasses import dataclass

from mova_engine.config.model import ClipConfig, MovaConfig
from mova_engine.config.stages import AUDIO_VAE, TEXT_ENCODER, VIDEO_VAE
from mova_engine.predict.job import WIDTHS, PlannedRun

_WAN_WEIGHTS, _DAC_WEIGHTS, _UMT5_WEIGHTS = 126_892_531, 371_539_137, 5_680_910_336
# Of UMT5: its embedding, the blocks of equal size that it has besides.
_UMT5_EMBEDDING, _UMT5_BLOCKS = 256_384 * 4096, 24
_WAN_CHANNELS, _WAN_MULTIPLES, _WAN_UNITS = 96, (1, 2, 4, 4), 2
_DAC_CHANNELS, _DAC_STRIDES = 128, (2, 3, 4, 5, 8)
# Full-resolution activations alive at once while four frames are encoded (assumed).
_WAN_ALIVE = 10


@dataclass(frozen=True)
class EncodeCost:
    """Costs of one clip. video_flops: one encode of all frames. *_weights: number of parameters and buffers.
    text_block: number of parameters of a block of the text encoder.
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
        working_bytes=_WAN_ALIVE * 4 * clip.height * clip.width * _WAN_CHANNELS * 2,
    )


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
