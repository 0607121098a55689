"""DOVER's ratings of a clip."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mova_engine.scores import dover_score
from mova_engine.scores.decoded_clip import DecodedClip, Measured
from mova_engine.scores.networks.dover import Dover


class ClipPictures:
    """A clip's pictures as `dover_score` takes them: those of given indices as uint8 [t, 3, h, w]."""

    def __init__(self, clip: DecodedClip) -> None:
        self._clip = clip

    def __len__(self) -> int:
        return len(self._clip.times)

    def __getitem__(self, indices: Sequence[int]) -> Tensor:
        once = sorted(set(indices))
        place = {index: i for i, index in enumerate(once)}
        height, width = self._clip.size
        table = torch.empty(len(once), 3, height, width, dtype=torch.uint8)
        for row, picture in zip(table, self._clip.pictures_of(once), strict=True):
            row.copy_(torch.from_numpy(picture).permute(2, 0, 1))
        return table if once == list(indices) else table[[place[index] for index in indices]]


def clip_dover(clip: DecodedClip, network: Dover, convention: dover_score.Convention) -> Measured:
    """Technical and aesthetic quality, raw and from 0 to 1, and the overall one; pictures are drawn with seed 0."""
    found = dover_score.measure_dover(network, ClipPictures(clip), convention=convention)
    return Measured(
        {
            "dover_overall": found.overall,
            "dover_technical": found.technical,
            "dover_aesthetic": found.aesthetic,
            "dover_technical_raw": found.technical_raw,
            "dover_aesthetic_raw": found.aesthetic_raw,
        },
        None,
    )
