"""mova_engine: train, fine-tune, run and measure MOVA, the open model that generates video and its sound together.

The public names are those of `__all__`; each is imported when it is first asked for, so that importing the package
imports nothing else, torch least of all. Only where a command of the engine was started (`python -m mova_engine.train`,
`mova train`) does it act: `load_devices_when_asked`.
"""

import os
import sys

__version__ = "0.1.0"

# The public names by the module that holds them; __init__.pyi says the same to type checkers and editors.
_PUBLIC = {
    name: module
    for module, names in {
        "adapters": "add_lora load_lora lora_parameters merge_folder merged_lora remove_lora save_lora",
        "backend": "default_backend get_backend",
        "codecs": "build_audio_codec build_text_encoder build_video_codec video_from_uint8 video_to_uint8",
        "config.clip": "ClipSettings",
        "config.curate": "CurateConfig",
        "config.curation_recipes": "load_curation",
        "config.diffusion": "LossWeights",
        "config.memory": "MemoryConfig",
        "config.mesh": "choose_mesh",
        "config.model": "MovaConfig get_preset",
        "config.parallel": "ParallelConfig",
        "config.recipes": "load_config recipe_names",
        "config.train": "TrainConfig",
        "curation.curation_run": "Curation",
        "data.synthetic.bounce": "draw_clips",
        "diffusion.conditioning": "first_frame_condition video_input",
        "diffusion.guidance": "Guidance",
        "diffusion.loss": "Share velocity_loss",
        "diffusion.schedule": "Schedule add_noise velocity_target",
        "distributed.gradients": "sum_gradients",
        "distributed.processes": "read_launch start_processes",
        "errors": "MovaError",
        "inference.generated_clip": "GeneratedClip",
        "inference.given_clip": "GivenClip",
        "inference.pipeline": "Pipeline",
        "inference.sound_pipeline": "GeneratedSound SoundPipeline",
        "models.modality": "Modality",
        "models.mova": "Mova",
        "ops": "OPERATORS Implementation Machine OpTable Operator bind choose",
        "train.trainer": "Trainer",
    }.items()
    for name in names.split()
}
__all__ = sorted(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll] the stub has them one by one

AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"
# What the user asked of torch, before a command changes it: the doctor examines that.
autoload_asked = os.environ.get(AUTOLOAD)


def load_devices_when_asked() -> None:
    """Keep torch, where it is yet to be imported, from importing the device packages that are installed beside it.

    One whose own libraries are missing, as torch_npu's are until CANN is set up, makes `import torch` fail whatever
    device is wanted. The engine imports the package of the device that it is asked for.
    """
    if "torch" not in sys.modules:
        os.environ[AUTOLOAD] = "0"


def _is_own_command() -> bool:
    """Whether this is `python -m mova_engine.SOMETHING`: "-m" stands first while Python looks for the module."""
    words = (word.removeprefix("-m").split(".")[0] for word in sys.orig_argv)
    return sys.argv[:1] == ["-m"] and __name__ in words


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if _is_own_command():
    load_devices_when_asked()
