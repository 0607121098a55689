"""Prints what context parallelism sends per rank and training step: by formula, counted, and the reference's."""

import socket

import torch.multiprocessing

from mova_engine.config.mesh import choose_mesh
from mova_engine.config.model import get_preset
from mova_engine.distributed.counted_traffic import SMALL, count_as_rank
from mova_engine.predict.context_traffic import ContextTraffic, reference_shape, reference_traffic, training_traffic

SIZES = (2, 4, 8)


def print_traffic(model: str, count: int | None = None) -> int:
    """Print the bytes that the ranks of a context-parallel group send, by formula.

    count: also start that many processes and count what they send. Returns 1 if a count differs from its formula, else
    0.
    """
    config = get_preset(model)
    print(f"{config.name}, bf16, one clip: GB sent per rank and training step by context parallelism (formula)")
    print(f"{'ranks':>6} {'checkpointing':14} {'mesh':22} {'forward':>9} {'repeated':>9} {'backward':>9} {'in all':>9}")
    for size in SIZES:
        shape, theirs = choose_mesh(size, config.video.num_heads, context_parallel=size), reference_shape(config, size)
        reference = reference_traffic(config, size)
        for policy in ("selective", "out", "full"):
            _print(size, policy, str(shape), training_traffic(config, shape, policy), reference)
        _print(size, "reference", str(theirs), reference, reference)
    return _count(count) if count is not None else 0


def _print(size: int, what: str, mesh: str, traffic: ContextTraffic, reference: ContextTraffic) -> None:
    parts = (traffic.forward, traffic.repeated, traffic.backward, traffic.total)
    numbers = " ".join(f"{n / 1e9:9.2f}" for n in parts)
    share = traffic.total / reference.total
    print(f"{size:6} {what:14} {mesh:22} {numbers} {f'{share:.1%} of the reference' if share < 1 else ''}".rstrip())


def _count(size: int) -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    clip = SMALL.clip
    print(
        f"\n{clip.video_tokens} video and {clip.audio_tokens} audio tokens, float32, {size} processes: bytes sent by "
        "all ranks, counted and by formula",
        flush=True,
    )
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(count_as_rank, (size, port, results), nprocs=size)
    counts = [results.get() for _ in range(size)]
    wrong = 0
    for what in counts[0]:
        counted, formula = (sum(count[what][i] for count in counts) for i in (0, 1))
        wrong += counted != formula
        print(f"{what:32} {counted:12} {formula:12} {'equal' if counted == formula else 'NOT EQUAL'}")
    return 1 if wrong else 0
