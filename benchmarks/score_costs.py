"""CPU seconds of the core scores of a clip, by score, and of lip sync beside the bare calls of its two networks.

    python -m benchmarks.score_costs --out benchmarks/results/score-costs.json

Core scores are those that `mova eval` measures without weights. Each is measured once to open its networks, then on the
clip decoded anew; the CPU seconds of all threads count. Lip sync is measured whole (pictures, faces, tracks, crops,
cepstra, distances), and then the calls that it made of S3FD and SyncNet are repeated alone on the same tensors, in
turns with it. Both networks have their official size and random weights; S3FD's last layers are set to find one face,
whose place depends on nothing, since a random detector finds thousands.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.files.results import write_result
from mova_engine.scores.decoded_clip import DecodedClip
from mova_engine.scores.network_scores.clip_lip_sync import clip_lip_sync
from mova_engine.scores.networks.s3fd import S3FD
from mova_engine.scores.networks.syncnet import SyncNet
from mova_engine.scores.score_file import chosen_scores
from mova_engine.scores.score_runner import ClipScores, ScoreRunner

CLIP = Path(__file__).parents[1] / "tests" / "data" / "media" / "talking_real_speech.mp4"
Call = Callable[[], Any]


def seconds_of(act: Callable[[], Any]) -> float:
    """CPU seconds of a call, of all threads."""
    begin = time.process_time()
    act()
    return time.process_time() - begin


def core_seconds(path: Path) -> dict[str, float]:
    """CPU seconds of a clip by score; "decode": into memory; "small pictures": which several scores share."""
    runner = ScoreRunner()
    scores, _ = chosen_scores((), runner)
    runner.measure(DecodedClip.read(path), scores)
    clips: list[DecodedClip] = []
    found = {"decode": seconds_of(lambda: clips.append(DecodedClip.read(path)))}
    (clip,) = clips
    found["small pictures"] = seconds_of(lambda: clip.small_pictures)
    measured: list[ClipScores] = []
    for score in scores:
        found[score.name] = seconds_of(lambda score=score: measured.append(runner.measure(clip, [score])))
        assert measured[-1].values, measured[-1].reasons
    return found


def detector_of_one_face() -> S3FD:
    """S3FD whose answers do not depend on the picture: one face in its upper left corner, of 48 x 64 pixels."""
    network = S3FD().eval()
    weights = network.state_dict()
    for level in range(6):
        for layer in ("conf", "loc"):
            weights[f"{layer}.{level}.weight"].zero_()
            weights[f"{layer}.{level}.bias"].zero_()
        weights[f"conf.{level}.bias"].fill_(8.0)
        weights[f"conf.{level}.bias"][-1] = -8.0
    # The coarsest map is made the same everywhere; its answer is a face only where rows and columns before are missing.
    weights["extras.3.weight"].zero_()
    weights["extras.3.bias"].fill_(1.0)
    weights["conf.5.weight"][1, :, 0, 1] = weights["conf.5.weight"][1, :, 1, 0] = -1.0
    weights["conf.5.bias"].copy_(torch.tensor([0.0, 6.0]))
    size = [math.log(48 / 512) / 0.2, math.log(64 / 512) / 0.2]
    weights["loc.5.bias"].copy_(torch.tensor([60 / 51.2, 20 / 51.2, *size]))
    return network


def recorded_calls(networks: dict[str, nn.Module], act: Callable[[], Any]) -> list[Call]:
    """The outermost calls of modules of these networks while `act` runs, to be repeated on the same tensors."""
    calls: list[Call] = []
    depth = 0

    def before(module: nn.Module, given: tuple[Any, ...]) -> None:
        nonlocal depth
        if depth == 0:
            # Activations may be changed in place.
            kept = [each.clone() for each in given]
            calls.append(lambda: module(*kept))
        depth += 1

    def after(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    hooks = []
    for network in networks.values():
        for module in network.modules():
            hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        act()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


@torch.no_grad()
def lip_sync_seconds(path: Path, length: float, convention: Any, pairs: int) -> dict[str, Any]:
    """Seconds of the score and of its networks' calls alone, in turns, and the median of their ratios."""
    torch.manual_seed(0)
    networks: dict[str, nn.Module] = {"s3fd": detector_of_one_face(), "syncnet": SyncNet().eval()}
    values: dict[str, float] = {}

    def whole() -> None:
        # Decoded outside: it serves all scores. Small pictures and sound are made anew.
        values.update(clip_lip_sync(decoded[-1], networks, convention).values)

    def bare() -> None:
        for call in calls:
            call()

    decoded = [DecodedClip.read(path, seconds=length)]
    calls = recorded_calls(networks, whole)
    both = []
    for _ in range(pairs):
        decoded.append(DecodedClip.read(path, seconds=length))
        both.append({"score": seconds_of(whole), "networks": seconds_of(bare)})
    assert values["face_tracks"] == 1, values
    ratios = [each["score"] / each["networks"] for each in both]
    return {"seconds_of_clip": length, "calls": len(calls), "pairs": both, "ratio": statistics.median(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, default=CLIP)
    parser.add_argument("--seconds", type=float, default=1.0, help="of the clip, for lip sync")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    facts = circumstances(get_backend("cpu"))
    core = core_seconds(given.clip)
    lips = {name: lip_sync_seconds(given.clip, given.seconds, name, given.pairs) for name in ("corrected", "mova")}
    for name, seconds in core.items():
        print(f"{name:20} {seconds:.2f} s")
    print(f"{'together':20} {sum(core.values()):.2f} s")
    for name, found in lips.items():
        print(f"lip-sync, {name}: {found['ratio']:.3f} times the seconds of its networks alone")
    write_result(
        given.out,
        "score-costs",
        facts,
        option="--out",
        clip=given.clip.name,
        core=core,
        together=sum(core.values()),
        lip_sync=lips,
    )


if __name__ == "__main__":
    main()
