"""What Muon's matrices are, and what their updates cost: FLOPs of Newton-Schulz and bytes of an exchange.

Weights outside of them, and all weights of a run with AdamW, are AdamW's.
"""

from mova_engine.predict.job import WIDTHS, PlannedRun, sharded

# Bytes of a matrix's momentum, and those that its update moves: momentum and gradient in float32 read and written, what
# is orthogonalised written and read, the weight read and written by decay and update, a bf16 copy, clipping's read (by
# reading the code).
MOMENTUM, MOVED = 4, 62


def matrices(run: PlannedRun, used: bool) -> list[tuple[int, int, int]]:
    """(rows, columns, how many) of the matrices that Muon updates; none with AdamW. used: in one step; else with both
    video experts.
    """
    job = run.job
    if job.muon is None:
        return []
    model, rank = job.model, job.adapters
    v, a, bridges = model.bridge.visual_hidden_dim, model.bridge.audio_hidden_dim, len(model.bridge.layers)
    found: list[tuple[int, int, int]] = []
    for name, tower in (("video_dit", model.video), ("audio_dit", model.audio)):
        if name in job.components:
            times = tower.num_layers * (model.experts if name == "video_dit" and not used else 1)
            d, f = tower.dim, tower.ffn_dim
            found += [(d, d, 8 * times), (f, d, times), (d, f, times)]
    if "dual_tower_bridge" in job.components:
        found += [(v, v, 2 * bridges), (v, a, 2 * bridges), (a, a, 2 * bridges), (a, v, 2 * bridges)]
        if model.bridge.pooled_adaln and rank is None:
            found += [(3 * v, v, bridges), (v, v, bridges)]
    if rank is None:
        return found
    return [each for r, c, n in found for each in ((rank, c, n), (r, rank, n))]


def matrix_parameters(run: PlannedRun, used: bool) -> int:
    """Weights of the matrices that Muon updates."""
    return sum(r * c * n for r, c, n in matrices(run, used))


def newton_schulz_flops(run: PlannedRun) -> float:
    """Of one optimizer step, over one copy of the weights: in each Newton-Schulz step three products of the short side.
    Not among model FLOPs.
    """
    if run.job.muon is None:
        return 0.0
    sides = [(min(r, c), max(r, c), n) for r, c, n in matrices(run, used=True)]
    one = sum(n * (4 * short**2 * long + 2 * short**3) for short, long, n in sides)
    return run.job.muon.newton_schulz_steps * one / run.job.muon.every


def exchanged_bytes(run: PlannedRun) -> float:
    """Bytes that a rank sends in one optimizer step for whole matrices and for rows of their updates: each way what it
    has of them but for its share.
    """
    if run.job.muon is None:
        return 0.0
    ranks = sharded(run.layout)
    width = WIDTHS[run.job.muon.precision or run.job.precision]
    own = matrix_parameters(run, used=True) / ranks * width / run.job.muon.every
    return 2 * own * (ranks - 1) / ranks
