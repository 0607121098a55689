"""ImageBind: clips of sound, mel energies, crops of pictures, both towers, the score."""

import re
from typing import Any

import torch
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.parity.evaluation.case_bounds import Bound, EvaluationOutcome
from mova_engine.parity.evaluation.described import description, enlarged, every
from mova_engine.parity.evaluation.evaluation_runner import CaseRunner
from mova_engine.parity.evaluation.recorded import recorded
from mova_engine.parity.evaluation.stated import StatedCase, int16_sound
from mova_engine.scores import imagebind_score
from mova_engine.scores.features.kaldi import fbank, kaldi_filter_bank
from mova_engine.scores.features.resample import resample
from mova_engine.scores.imagebind_score import PreparedSound
from mova_engine.scores.networks.imagebind import SIDE, ImageBind, ImageBindConfig

_RATE = re.compile(r"at (\d+) Hz")
_SOUNDS = re.compile(r"sounds: ([\w.-]+(?:, [\w.-]+)*)")


def run_imagebind(case: StatedCase, device: torch.device) -> EvaluationOutcome:
    """Every tensor of the case; names of sounds and pictures come from the case."""
    _require(case)
    network = case.load("imagebind_tiny", ImageBind(_config(case))).to(device)
    assert isinstance(network, ImageBind)
    prepared, sounds, values = _sounds(case)
    pictures, means = _pictures(case)
    if not (stated := _SOUNDS.search(description(case, "out.audio.embedding"))):
        raise MovaError(f"{case.case.path}: tensors.out.audio.embedding does not name its sounds")
    mel = torch.stack([prepared[name].mel for name in stated[1].rstrip(".").split(", ")]).to(device)
    crops = imagebind_score.normalise_pictures(enlarged(case, "in.video.frames_lowres").to(device) / 255)
    with recorded(_layers(network, "audio")) as heard:
        audio = imagebind_score.audio_embedding(network, mel)
    with recorded(_layers(network, "vision")) as seen:
        video = imagebind_score.video_embedding(network, crops)
    tensors = {
        "out.audio.embedding": audio,
        "out.video.embedding": video,
        "out.video.embedding_single_frame": imagebind_score.video_embedding(network, crops[:, :, :1]),
    }
    for name, made in {**heard, **seen}.items():
        tensors[name] = made if name.endswith("head") else made[:, :: every(case, name, "tokens")]
    scores = imagebind_score.score_imagebind(video, audio)
    values |= {"IB_score_per_clip": scores.tolist(), "IB_score": float(scores.mean())}
    return EvaluationOutcome(tensors | sounds | pictures, values | means)


def _require(case: StatedCase) -> None:
    required = {
        "audio.sample_rate": imagebind_score.SAMPLE_RATE,
        "audio.clip_seconds": imagebind_score.CLIP_SECONDS,
        "audio.clips": imagebind_score.CLIPS,
        "audio.mel_bins": imagebind_score.MEL_BINS,
        "audio.frames": imagebind_score.COLUMNS,
        "audio.mean": imagebind_score.MEL_MEAN,
        "audio.std": imagebind_score.MEL_STD,
        "frames.size": SIDE,
        "frames.rate_per_second": imagebind_score.FRAME_RATE,
        "frames.mean": list(imagebind_score.PICTURE_MEAN),
        "frames.std": list(imagebind_score.PICTURE_STD),
    }
    for name, value in required.items():
        case.require(name, value)
    official = ImageBindConfig()
    for name, value in case.parameter("official_config").items():
        case.require(f"official_config.{name}", getattr(official, name, value))
    case.describes("audio.fbank", "frames.count")


def _config(case: StatedCase) -> ImageBindConfig:
    given = case.parameter("config")
    unknown = given.keys() - ImageBindConfig.__dataclass_fields__.keys()
    if unknown:
        raise MovaError(f"{case.case.path}: parameters.config has {', '.join(sorted(unknown))}, which ImageBind lacks")
    return ImageBindConfig(**given | {"kernel_size": tuple(given["kernel_size"])})


def _layers(network: ImageBind, modality: str) -> dict[str, torch.nn.Module]:
    trunk = network.modality_trunks.get_submodule(modality)
    layers = {
        "stem": network.modality_preprocessors.get_submodule(f"{modality}.rgbt_stem"),
        "pre": trunk.get_submodule("pre_transformer_layer"),
        "attn0": trunk.get_submodule("blocks.0.attn"),
        "block0": trunk.get_submodule("blocks.0"),
        "head": network.modality_heads.get_submodule(modality),
    }
    return {f"mid.{modality}.{name}": layer for name, layer in layers.items()}


def _sounds(case: StatedCase) -> tuple[dict[str, PreparedSound], dict[str, Tensor], dict[str, Any]]:
    """The sounds prepared, in the order in which the case has them, and what it records of each."""
    prepared: dict[str, PreparedSound] = {}
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for name, stored in case.tensors.items():
        if not (stated := re.fullmatch(r"in\.(.+)\.wave", name)):
            continue
        clip = stated[1]
        sound, sample_rate = int16_sound(stored), _rate(case, name)
        prepared[clip] = made = imagebind_score.prepare_sound(sound, sample_rate)
        mel, after = f"out.{clip}.mel", f"out.{clip}.wave_after"
        tensors[mel] = made.mel[:, :: every(case, mel, "mels")] if "::" in description(case, mel) else made.mel
        # The reference subtracts in the caller's own samples where it does not resample them.
        own = sample_rate == imagebind_score.SAMPLE_RATE
        changed = (made.samples - sound).abs().max() if own else torch.tensor(0.0)
        if after in case.tensors:
            tensors[after] = made.samples[:, :: every(case, after, "samples")]
        resampled = f"mid.{clip}.wave_16k"
        if resampled in case.tensors:
            at_16k = resample(sound, sample_rate, imagebind_score.SAMPLE_RATE)
            tensors[resampled] = at_16k[:, : case.tensors[resampled].shape[1]]
        count = made.samples.shape[1]
        times = imagebind_score.clip_times(count / imagebind_score.SAMPLE_RATE)
        values |= {
            f"{clip}.clips_seconds": [[float(start), float(end)] for start, end in times],
            f"{clip}.clips_samples": [list(pair) for pair in imagebind_score.clip_samples(count)],
            f"{clip}.largest_change_of_the_callers_samples": float(changed),
        }
    return prepared, tensors | _filter_bank(case), values


def _rate(case: StatedCase, name: str) -> int:
    """Samples per second of a stored sound, from its description."""
    if not (stated := _RATE.search(description(case, name))):
        raise MovaError(f"{case.case.path}: tensors.{name} does not state its rate")
    return int(stated[1])


def _filter_bank(case: StatedCase) -> dict[str, Tensor]:
    stated = re.search(r"first ([\d.]+) s of (\w[\w.-]*)", description(case, "mid.fbank.first_clip"))
    if not stated:
        raise MovaError(f"{case.case.path}: tensors.mid.fbank.first_clip does not say of which sound it is")
    name, rate = f"in.{stated[2]}.wave", imagebind_score.SAMPLE_RATE
    sound = resample(int16_sound(case.tensors[name]), _rate(case, name), rate)[:, : round(float(stated[1]) * rate)]
    energies = fbank((sound - sound.mean())[0], rate, mels=imagebind_score.MEL_BINS)
    bins = case.tensors["mid.fbank.mel_banks"].shape[1]
    bank = kaldi_filter_bank(rate, 2 * bins, imagebind_score.MEL_BINS)
    return {
        "mid.fbank.first_clip": energies[:: every(case, "mid.fbank.first_clip", "frames")],
        "mid.fbank.mel_banks": bank.T[:, :bins],
    }


def _pictures(case: StatedCase) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, values = {}, {}
    for name, stored in case.tensors.items():
        if not (stated := re.fullmatch(r"in\.(frames\.\w+)", name)):
            continue
        for kind, given in (("uint8", stored), ("float", stored.to(torch.float32) / 255)):
            made = imagebind_score.prepare_pictures(given)
            out = f"out.{stated[1]}.from_{kind}"
            step = every(case, out, "columns")
            tensors[out] = made[..., ::step, ::step]
            values[f"{stated[1]}.mean_from_{kind}"] = made.mean((1, 2, 3, 4)).tolist()
    return tensors, values


CASE = CaseRunner(
    run_imagebind,
    {
        "out.*.mel": Bound(1e-3, "absolute"),
        "mid.fbank.first_clip": Bound(1e-2, "absolute"),
        "mid.fbank.mel_banks": Bound(1e-4, "absolute"),
        "out.*.wave_after": Bound(1e-6, "absolute"),
        "mid.*.wave_16k": Bound(1e-6, "absolute"),
        # One grey level: how 8-bit pictures are rounded depends on torch's kernel for the processor.
        "out.frames.*.from_uint8": Bound(0.016, "absolute"),
        "out.frames.*": Bound(1e-5, "absolute"),
        "mid.*": Bound(1e-4),
        "out.*": Bound(1e-4),
        "values.*.clips_seconds": Bound(1e-12, "absolute"),
        "values.*.largest_change*": Bound(1e-6, "absolute"),
        "values.frames.*": Bound(1e-4, "absolute"),
        "values.IB_score*": Bound(1e-5, "absolute"),
    },
)
