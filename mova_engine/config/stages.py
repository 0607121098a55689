"""The stages of sampling and encoding, in order, and which parts of a model are on the device in each.

`memory.residency` moves parts as this says, and `predict.memory_use` counts them by it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mova_engine.config.memory import MemoryConfig
from mova_engine.config.model import COMPONENTS

# Layers of a streamed model that the device holds: one computes while the next is copied (`memory.streaming`).
STREAM_SLOTS = 2
# Micro-batches that are prepared ahead of the training step, and wait for it on the device.
PREPARED_AHEAD = 2
# Layers of which it holds what they keep for the backward, where that waits on the host (`memory.host_offload`).
OFFLOAD_LAYERS = 2

TEXT_ENCODER, VIDEO_VAE, AUDIO_VAE = "text_encoder", "video_vae", "audio_vae"
CODEC_PARTS = (TEXT_ENCODER, VIDEO_VAE, AUDIO_VAE)
# The video experts' components, by index; the first serves every step of a model that has one expert alone.
EXPERTS = ("video_dit", "video_dit_2")

# Clips of a data set into latents; captions; first and last frames of clips that are to be made.
ENCODE_CLIPS, ENCODE_TEXT, ENCODE_FRAMES = "encode clips", "encode text", "encode frames"
# The names of parts in reports.
PART_NAMES = {TEXT_ENCODER: "text encoder", VIDEO_VAE: "video codec", AUDIO_VAE: "audio codec"}
# By the expert that serves the steps.
DENOISE = ("denoise at high noise", "denoise at low noise")
# The audio tower alone.
DENOISE_AUDIO = "denoise audio"
DECODE_VIDEO, DECODE_AUDIO = "decode video", "decode audio"
# The stage of training in which steps are taken.
TRAIN = "train"
# Towers that stay while clips are made, before the first step; no stage of its own work.
LOAD_TOWERS = "load towers"
SAMPLING = (ENCODE_TEXT, ENCODE_FRAMES, LOAD_TOWERS, *DENOISE, DECODE_VIDEO, DECODE_AUDIO)


@dataclass(frozen=True)
class ModelStage:
    """A span of work. parts: what works in it, in the order in which it comes to the device. beside: what may lie on
    the device as well, where it has come in an earlier stage.
    """

    name: str
    parts: tuple[str, ...]
    beside: tuple[str, ...] = ()


def stages(memory: MemoryConfig, *, experts: int = 2, sharded: bool = False) -> tuple[ModelStage, ...]:
    """All stages in their order, as the settings `idle` and `expert` of `memory` have them.

    sharded: towers and bridge are divided among processes, each of which keeps its part on the device.
    """
    moving = EXPERTS if memory.expert == "host" and experts == 2 and not sharded else ()
    staying = tuple(name for name in COMPONENTS if name not in moving)
    denoised = [(EXPERTS[index if experts == 2 else 0], *COMPONENTS[2:]) for index in range(2)]
    parts = {
        ENCODE_CLIPS: (VIDEO_VAE, AUDIO_VAE),
        ENCODE_TEXT: (TEXT_ENCODER,),
        ENCODE_FRAMES: (VIDEO_VAE,),
        LOAD_TOWERS: tuple(name for name in denoised[0] if name in staying),
        **dict(zip(DENOISE, denoised, strict=True)),
        DENOISE_AUDIO: ("audio_dit",),
        DECODE_VIDEO: (VIDEO_VAE,),
        DECODE_AUDIO: (AUDIO_VAE,),
    }

    def beside(name: str) -> tuple[str, ...]:
        if memory.idle == "device":
            return (*CODEC_PARTS, *staying)
        # The text encoder (11.4 GB) is the only other part that does not fit beside the towers as a matter of course.
        return staying if sharded or name != ENCODE_TEXT else ()

    return tuple(ModelStage(name, used, beside(name)) for name, used in parts.items())


def held(order: Sequence[ModelStage], parts: Collection[str]) -> dict[str, tuple[str, ...]]:
    """By stage, those of `parts` that it has on the device when all stages of `order` follow one another again and
    again. Stages of which there is no part are left out.
    """
    lingering = {name for stage in order for name in stage.beside}
    found: dict[str, tuple[str, ...]] = {}
    present: set[str] = set()
    for stage in (*order, *order):
        own = [name for name in stage.parts if name in parts]
        if own:
            present = {*own, *(name for name in present if name in stage.beside)}
            found[stage.name] = tuple(name for name in (*CODEC_PARTS, *COMPONENTS) if name in present)
            present &= lingering
    return found
