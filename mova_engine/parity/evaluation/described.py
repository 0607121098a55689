"""What a case's descriptions of its tensors state in words: which elements were kept, how pictures were made small."""

import re

import numpy as np
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.parity.evaluation.stated import StatedCase

_ORDINALS = ("second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def description(case: StatedCase, name: str) -> str:
    """The words about a tensor; MovaError where the case has none."""
    found = case.case.meta.get("tensors", {}).get(name, {})
    if "what" not in found:
        raise MovaError(f"{case.case.path}: tensors.{name} is not described")
    return found["what"]


def every(case: StatedCase, name: str, of: str) -> int:
    """n where the description keeps every n-th element: "rows and columns ::n", "every nth". MovaError for neither.

    of: what is counted, as the description calls it.
    """
    text = description(case, name)
    found = re.search(rf"\b{of} ::(\d+)", text) or re.search(r"\bevery (\d+)(?:st|nd|rd|th)\b", text)
    if not found and (word := re.search(rf"\bevery ({'|'.join(_ORDINALS)})\b", text)):
        return _ORDINALS.index(word[1]) + 2
    if not found:
        raise MovaError(f"{case.case.path}: tensors.{name} does not say which {of} were kept: {text}")
    return int(found[1])


def thinned(case: StatedCase, name: str, made: Tensor, first: int = 1, same_as: str = "") -> Tensor:
    """Every n-th element of `made` in the dimensions from `first` on, as far as the description of `name` has steps.

    same_as: the tensor whose steps count where the description says "same slice".
    """
    text = description(case, name)
    if same_as and "same slice" in text:
        text = description(case, same_as)
    for dimension, step in enumerate(re.findall(r"::(\d+)", text), start=first):
        made = made[(slice(None),) * dimension + (slice(None, None, int(step)),)]
    return made


def pixel_repeats(case: StatedCase, name: str) -> int | None:
    """How often every pixel of a stored picture is repeated in both directions; None where nothing says so."""
    found = re.search(r"repeat every pixel (\d+) times|every pixel repeated (\d+) times", description(case, name))
    return int(found[1] or found[2]) if found else None


def enlarged(case: StatedCase, name: str) -> Tensor:
    """The stored pictures [..., h, w] with every pixel repeated as the description says."""
    times = pixel_repeats(case, name) or 1
    return case.tensors[name].repeat_interleave(times, -2).repeat_interleave(times, -1)


def enlarged_last(case: StatedCase, name: str) -> np.ndarray:
    """The stored pictures [..., h, w, c] with every pixel repeated as the description says."""
    times = pixel_repeats(case, name) or 1
    return case.tensors[name].numpy().repeat(times, -3).repeat(times, -2)
