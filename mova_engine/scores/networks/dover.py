"""DOVER: technical and aesthetic quality of a video, by two networks.

Wu et al., "Exploring Video Quality Assessment on User Generated Contents from Aesthetic and Technical Perspectives"
(arXiv 2211.04894). The technical one is Video Swin-T with gated biases on fragments (FAST-VQA, arXiv 2207.02595), the
aesthetic one an inflated ConvNeXt-T. Parameters carry the names of the official checkpoint `DOVER.pth`
(VQAssessment/DOVER; S-Lab licence, not for commercial use).
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mova_engine.scores.networks.video_swin import VideoSwin

_DEPTHS = (3, 3, 9, 3)
_WIDTHS = (96, 192, 384, 768)
# Pictures that the depthwise convolutions of successive blocks span.
_SPANS = (1, 3, 1)
_HIDDEN = 64


class Dover(nn.Module):
    """Score maps of normalised pictures; a branch's score is the mean of its map."""

    def __init__(self) -> None:
        super().__init__()
        self.technical_backbone = VideoSwin()
        self.aesthetic_backbone = VideoConvNeXt()
        self.technical_head = _Head(self.technical_backbone.width)
        self.aesthetic_head = _Head(_WIDTHS[-1])

    def technical(self, fragments: Tensor) -> Tensor:
        """Spliced fragments [b, 3, t, 224, 224] -> score map [b, 1, t / 2, 7, 7]."""
        return self.technical_head(self.technical_backbone(fragments))

    def aesthetic(self, pictures: Tensor) -> Tensor:
        """Resized pictures [b, 3, t, 224, 224] -> score map [b, 1, t / 2, 7, 7]."""
        return self.aesthetic_head(self.aesthetic_backbone(pictures))


class VideoConvNeXt(nn.Module):
    """ConvNeXt-T over pictures [b, 3, t, h, w] -> [b, 768, t / 2, h / 32, w / 32]."""

    def __init__(self) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv3d(3, _WIDTHS[0], (2, 4, 4), (2, 4, 4)), _ChannelLayerNorm(_WIDTHS[0]))
        layers = [stem]
        for before, after in pairwise(_WIDTHS):
            layers.append(nn.Sequential(_ChannelLayerNorm(before), nn.Conv3d(before, after, (1, 2, 2), (1, 2, 2))))
        self.downsample_layers = nn.ModuleList(layers)
        self.stages = nn.ModuleList(
            nn.Sequential(*(_ConvNeXtBlock(width, _SPANS[i % len(_SPANS)]) for i in range(depth)))
            for width, depth in zip(_WIDTHS, _DEPTHS, strict=True)
        )
        self.norm = nn.LayerNorm(_WIDTHS[-1], eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        for layer, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(layer(x))
        return self.norm(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


class _ConvNeXtBlock(nn.Module):
    def __init__(self, width: int, span: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv3d(width, width, (span, 7, 7), padding=(span // 2, 3, 3), groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        made = self.norm(self.dwconv(x).permute(0, 2, 3, 4, 1))
        made = self.gamma * self.pwconv2(F.gelu(self.pwconv1(made)))
        return x + made.permute(0, 4, 1, 2, 3)


class _ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of [b, c, t, h, w]."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


class _Head(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc_hid = nn.Conv3d(width, _HIDDEN, 1)
        self.fc_last = nn.Conv3d(_HIDDEN, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_last(F.gelu(self.fc_hid(x)))
