"""Adapters of a small model's sizes, and files of them in every dialect."""

import pytest
import torch

from mova_engine.adapters.dialects import get_dialect
from mova_engine.adapters.form import Adapter, LowRank
from mova_engine.adapters.writing import write_adapter

LAYERS = ("self_attn.q", "cross_attn.o", "ffn.0", "ffn.2")
BRIDGE = "dual_tower_bridge.audio_to_video_conditioners.3.inner.k"


def pair(source, rank=16, alpha=64.0, dtype=torch.float32, magnitude=False, rows=40):
    """A random update of a weight [rows, 24]."""
    drawn = torch.randn(rows, generator=source).abs() if magnitude else None
    a, b = torch.randn(rank, 24, generator=source), torch.randn(rows, rank, generator=source)
    return LowRank(a.to(dtype), b.to(dtype), alpha, drawn)


@pytest.fixture
def source():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def adapter(source):
    """All four components, rank 16 and alpha 64."""
    towers = ("video_dit", "video_dit_2", "audio_dit")
    names = [f"{tower}.blocks.{i}.{layer}" for tower in towers for i in (0, 11) for layer in LAYERS]
    return Adapter({name: pair(source) for name in (*names, "video_dit.head.head", BRIDGE)})


def out_of(dialect, folder, name="x"):
    """Where a dialect's adapter goes: a file or a folder."""
    known = get_dialect(dialect)
    if dialect == "mova-low-resource":
        return folder / f"{name}.pt"
    return folder / name if known.per_part or known.files else folder / f"{name}.safetensors"


@pytest.fixture
def written(adapter, tmp_path):
    """What writes the adapter in a dialect and returns the path."""

    def write(dialect, what=adapter):
        out = out_of(dialect, tmp_path, dialect)
        write_adapter(what, out, dialect)
        return out

    return write
