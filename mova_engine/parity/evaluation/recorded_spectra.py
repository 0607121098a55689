"""CLAP's mel spectra by the arithmetic that the recorded ones were made with.

They are float32, and in bands 90 dB below the loudest nothing but the rounding of the transform decides the third
digit: exact spectra (float64) of the recorded clip are 0.005 dB away at -54 dB, where the case allows 0.002. The
recorded ones are to the digit those of MKL's code for CPUs without AVX; its code for AVX2 and AVX-512 is 0.007 to
0.009 dB away. Which one MKL takes is settled at its first call in a process, so spectra are made in one of their own.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.scores.clap_score import FusedMels, fused_mels
from mova_engine.scores.networks.clap import ClapSizes

# One sequence of draws, and the sounds that take their pieces from it one after the other.
Group = tuple[int, list[Tensor]]
_PROGRAM = (
    "import sys; from mova_engine.parity.evaluation.recorded_spectra import write_spectra; write_spectra(*sys.argv[1:])"
)


def recorded_spectra(groups: Sequence[Group], device: torch.device) -> list[list[FusedMels]]:
    """What CLAP reads of sounds [n], by group (seed, sounds). MovaError where the process that makes them fails.

    On another device than the CPU they are that device's own.
    """
    if device.type != "cpu":
        return [_of_group(seed, [x.to(device) for x in sounds]) for seed, sounds in groups]
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "sounds.pt"), Path(folder, "spectra.pt")
        torch.save([[seed, sounds] for seed, sounds in groups], given)
        env = os.environ | {"MKL_CBWR": "COMPATIBLE", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", _PROGRAM, str(given), str(made)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise MovaError(f"spectra could not be made: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
        read = torch.load(made, weights_only=True)
    return [[FusedMels(mels, longer, tuple(starts)) for mels, longer, starts in group] for group in read]


def write_spectra(given: str, made: str) -> None:
    """The process: spectra of the groups in one file into another."""
    groups = torch.load(given, weights_only=True)
    read = [_of_group(seed, sounds) for seed, sounds in groups]
    torch.save([[[x.mels.contiguous(), x.longer, list(x.starts)] for x in group] for group in read], made)


@torch.no_grad()
def _of_group(seed: int, sounds: Sequence[Tensor]) -> list[FusedMels]:
    random = np.random.RandomState(seed)
    return [fused_mels(x, ClapSizes().sound, random) for x in sounds]
