"""What conftest.py promises to every test."""

import random

import numpy as np
import torch


def test_uninitialised_memory_is_nan():
    assert torch.empty(1000).isnan().all()
    assert torch.empty_like(torch.ones(8, dtype=torch.bfloat16)).isnan().all()
    # Integers get their largest value, which no index survives.
    assert (torch.empty(8, dtype=torch.int64) == torch.iinfo(torch.int64).max).all()


def test_generators_start_from_the_same_seed():
    drawn = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    assert drawn == (random.random(), np.random.rand(), torch.rand(()).item())


def test_one_thread():
    assert torch.get_num_threads() == 1
