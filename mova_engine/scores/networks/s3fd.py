"""S3FD, a detector of faces at six scales in one pass over a VGG-16.

Zhang et al., "S3FD: Single Shot Scale-invariant Face Detector" (arXiv 1708.05237). Parameters carry the names of the
checkpoint `sfd_face.pth` that SyncNet's pipeline uses (joonson/syncnet_python, MIT).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What is subtracted from red, green and blue.
MEAN = (123.0, 117.0, 104.0)
# The smallest side of a picture: five halvings leave one row.
LEAST_SIDE = 32
# Side in pixels of the prior boxes of each of the six maps, and pixels from one to the next.
PRIOR_SIDES = (16, 32, 64, 128, 256, 512)
STEPS = (4, 8, 16, 32, 64, 128)
# Of the regressed centres and logarithmic sizes.
VARIANCES = (0.1, 0.2)
_VGG = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "ceil", 512, 512, 512, "pool", 512, 512, 512, "pool")
# Layers of `vgg` after which a map is taken, with the initial scale of its norm.
_TAPS = {16: ("L2Norm3_3", 256, 10.0), 23: ("L2Norm4_3", 512, 8.0), 30: ("L2Norm5_3", 512, 5.0)}
_MAP_CHANNELS = (256, 512, 512, 1024, 512, 256)


class ChannelNorm(nn.Module):
    """x / |x| over channels, times a learned scale for each: [b, c, h, w] -> [b, c, h, w]."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        norm = x.square().sum(1, keepdim=True).sqrt() + 1e-10
        return self.weight[:, None, None] * (x / norm)


@dataclass(frozen=True)
class FaceMaps:
    """What the network says of each prior box.

    regression [b, p, 4]; faces [b, p, 2], the probabilities of background and face; priors [p, 4], centre x, centre y,
    width and height as fractions of the picture.
    """

    regression: Tensor
    faces: Tensor
    priors: Tensor

    def boxes(self) -> Tensor:
        """Boxes [b, p, 4]: left, top, right, bottom as fractions of the picture."""
        centre = self.priors[:, :2] + self.regression[..., :2] * VARIANCES[0] * self.priors[:, 2:]
        size = self.priors[:, 2:] * torch.exp(self.regression[..., 2:] * VARIANCES[1])
        corner = centre - size / 2
        return torch.cat((corner, size + corner), -1)


class S3FD(nn.Module):
    """Pictures float [b, 3, h, w], red first, 0..255 less MEAN -> FaceMaps."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for entry in _VGG:
            if isinstance(entry, int):
                layers += [nn.Conv2d(channels, entry, 3, padding=1), nn.ReLU(inplace=True)]
                channels = entry
            else:
                layers.append(nn.MaxPool2d(2, 2, ceil_mode=entry == "ceil"))
        layers += [nn.Conv2d(512, 1024, 3, padding=6, dilation=6), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(1024, 1024, 1), nn.ReLU(inplace=True)]
        self.vgg = nn.ModuleList(layers)
        for name, width, scale in _TAPS.values():
            self.add_module(name, ChannelNorm(width, scale))
        self.extras = nn.ModuleList(
            [
                nn.Conv2d(1024, 256, 1),
                nn.Conv2d(256, 512, 3, 2, padding=1),
                nn.Conv2d(512, 128, 1),
                nn.Conv2d(128, 256, 3, 2, padding=1),
            ]
        )
        self.loc = nn.ModuleList([nn.Conv2d(width, 4, 3, padding=1) for width in _MAP_CHANNELS])
        # The finest map has three answers for background, of which the largest counts.
        classes = (4, 2, 2, 2, 2, 2)
        self.conf = nn.ModuleList(
            [nn.Conv2d(width, n, 3, padding=1) for width, n in zip(_MAP_CHANNELS, classes, strict=True)]
        )

    def forward(self, pictures: Tensor) -> FaceMaps:
        maps = self._maps(pictures)
        regressions, faces = [], []
        for level, (features, loc, conf) in enumerate(zip(maps, self.loc, self.conf, strict=True)):
            answers = conf(features)
            if level == 0:
                answers = torch.cat((answers[:, :3].amax(1, keepdim=True), answers[:, 3:]), 1)
            regressions.append(loc(features).permute(0, 2, 3, 1).flatten(1, 2))
            faces.append(answers.permute(0, 2, 3, 1).flatten(1, 2))
        priors = prior_boxes(pictures.shape[-2:], [m.shape[-2:] for m in maps]).to(pictures.device)
        return FaceMaps(torch.cat(regressions, 1), torch.cat(faces, 1).softmax(-1), priors)

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps = []
        for index, layer in enumerate(self.vgg):
            if index in _TAPS:
                # Taken before the pooling layer of this index, which reads the same tensor.
                maps.append(self.get_submodule(_TAPS[index][0])(x))
            x = layer(x)
        maps.append(x)
        for index, layer in enumerate(self.extras):
            x = F.relu(layer(x))
            if index % 2:
                maps.append(x)
        return maps


def prior_boxes(size: torch.Size, maps: list[torch.Size]) -> Tensor:
    """Prior boxes float32 [p, 4] of a picture (height, width) with maps of these sizes, map by map, row by row."""
    height, width = size
    boxes = []
    for (rows, columns), side, step in zip(maps, PRIOR_SIDES, STEPS, strict=True):
        y = (torch.arange(rows, dtype=torch.float64) + 0.5) / (height / step)
        x = (torch.arange(columns, dtype=torch.float64) + 0.5) / (width / step)
        centre_y, centre_x = torch.meshgrid(y, x, indexing="ij")
        one = torch.ones_like(centre_x)
        boxes.append(torch.stack((centre_x, centre_y, one * (side / width), one * (side / height)), -1).flatten(0, 1))
    return torch.cat(boxes).to(torch.float32)
