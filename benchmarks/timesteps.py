"""A training step's forward and backward with one timestep per clip, and with one per latent frame: time and memory.

    python benchmarks/timesteps.py --model bench-mid --out benchmarks/results/timesteps-bench-mid.json

Both run in turns in this process, on noise; the ratio is the median over pairs with its 95% interval.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import torch

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.bench.peak_memory import peak_above_gradients
from mova_engine.bench.timing import interleave, median_ratio, stopwatch
from mova_engine.config.model import get_preset
from mova_engine.files.results import write_result
from mova_engine.models.modality import modalities
from mova_engine.models.mova import Mova
from mova_engine.ops import DTYPES, bind


def measure(model_name: str, device: str, dtype: torch.dtype, pairs: int) -> dict[str, object]:
    """Seconds of each form, their ratio, and bytes at the peak above weights and gradients."""
    backend, config = get_backend(device), get_preset(model_name)
    mova = Mova(config, bind(backend, dtypes=(dtype,)), device=backend.device(), dtype=dtype)
    mova.init_weights(torch.Generator(backend.device()).manual_seed(0))
    frames, sounds = config.clip.latent_shape[0], config.clip.audio_tokens
    generator = torch.Generator().manual_seed(1)
    shapes = (
        (1, config.video.in_dim, *config.clip.latent_shape),
        (1, config.audio.in_dim, sounds),
        (1, config.text_tokens, config.video.text_dim),
    )
    tensors = [torch.randn(shape, generator=generator).to(backend.device(), dtype) for shape in shapes]
    video, audio = modalities(*tensors, torch.tensor([800.0]), torch.tensor([500.0]))
    table = torch.linspace(1000.0, 0.0, frames).unsqueeze(0)
    forms = {
        "per clip": (video, audio),
        "per frame": (
            replace(video, timestep=table, index=tuple(range(frames))),
            replace(audio, given=tuple(i < sounds // 2 for i in range(sounds))),
        ),
    }

    def step(name: str) -> None:
        mova.zero_grad(set_to_none=True)
        sum(x.float().square().mean() for x in mova(*forms[name])).backward()

    times = interleave({name: stopwatch(lambda name=name: step(name), backend) for name in forms}, rounds=pairs)
    gradients = lambda: [p.grad for p in mova.parameters() if p.grad is not None]  # noqa: E731
    return {
        "model": model_name,
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": {name: sorted(found)[len(found) // 2] for name, found in times.items()},
        "times_slower": asdict(median_ratio(times["per frame"], times["per clip"])),
        "peak_bytes": {name: peak_above_gradients(lambda name=name: step(name), gradients) for name in forms},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="bench-mid")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    row = measure(args.model, args.device, DTYPES[args.dtype], args.pairs)
    write_result(args.out, "timesteps", circumstances(get_backend(args.device)), **row)
    print(row)
