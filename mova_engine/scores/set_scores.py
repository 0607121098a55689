"""Numbers of a whole set of clips, from the features that were kept of each: IS, FD, KL, KID.

Evidence of a clip: "logits" [classes] and "embedding" [width] of a network that tags or embeds its sound. Each function
takes that of all clips, where a reference is needed that of its clips, and the convention by its name
(`mova_engine.scores.audio_tagging`). MovaError where the set admits no number.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mova_engine.errors import MovaError
from mova_engine.scores import distances
from mova_engine.scores.decoded_clip import Floats

SPLITS = 10
Evidence = Sequence[Mapping[str, Floats]]


def set_inception_score(evidence: Evidence, convention: str) -> float:
    """exp of the mean KL of each clip's distribution over classes to their mean: 1 to the number of classes."""
    logits = _table(evidence, "logits")
    if convention == "mova":
        # The published scripts know the outputs of a sigmoid in float32, not the logits before it.
        outputs = torch.from_numpy(logits).sigmoid().numpy()
        score = distances.inception_score(distances.probabilities_of_outputs(outputs))
        if not np.isfinite(score):
            raise MovaError("a class of some clip has probability 1 in float32, which this convention makes NaN")
        return score
    return distances.inception_score(distances.softmax_of_logits(logits))


def set_split_inception_score(evidence: Evidence, convention: str) -> float:
    """av-benchmark's: the mean of 10 splits after a shuffle. MovaError below 10 clips."""
    if len(evidence) < SPLITS:
        raise MovaError(f"the inception score of {SPLITS} splits needs {SPLITS} clips, the set has {len(evidence)}")
    return distances.split_inception_score(_table(evidence, "logits"), SPLITS).mean


def set_frechet_distance(evidence: Evidence, reference: Evidence, convention: str) -> tuple[float, str]:
    """The Frechet distance of embeddings to those of the reference, and a note where clips are too few for it."""
    generated, real = _table(evidence, "embedding"), _table(reference, "embedding")
    count, width = min(len(generated), len(real)), generated.shape[1]
    few = (
        f"{count} rows are few for {width} dimensions (2 x {width} at least): biased upwards, and comparable only "
        "between sets of the same number"
    )
    return distances.frechet_distance(generated, real), few if count < 2 * width else ""


def set_kl_divergence(evidence: Evidence, reference: Evidence, convention: str) -> float:
    """Mean KL of the reference clip's classes to those of the generated clip of the same name, in nats."""
    return distances.kl_divergence(_table(reference, "logits"), _table(evidence, "logits"))


def set_kernel_distance(evidence: Evidence, reference: Evidence, convention: str) -> float:
    """KID of embeddings: unbiased at any number of clips; the mean of 100 subsets of at most 1000."""
    return distances.kernel_distance(_table(evidence, "embedding"), _table(reference, "embedding")).mean


def _table(evidence: Evidence, name: str) -> Floats:
    """One row for each clip; of clips with several rows (frames), all of them one after the other."""
    if not evidence:
        raise MovaError("no clip of the set was measured")
    return np.concatenate([np.atleast_2d(np.asarray(clip[name], np.float32)) for clip in evidence])
