"""SyncNet v2: features of five mouth pictures and of the 0.2 s of sound that belong to them.

Chung and Zisserman, "Out of time: automated lip sync in the wild" (2016). Parameters carry the names of the official
checkpoint `syncnet_v2.model` (joonson/syncnet_python, MIT).
"""

import torch
from torch import Tensor, nn

# Pictures in a window, and the side of each.
WINDOW = 5
SIDE = 224
# Columns of 10 ms of cepstral coefficients in a window.
COLUMNS = 20
COEFFICIENTS = 13


class SyncNet(nn.Module):
    """Two towers without common parameters, each ending in features [n, size]; distances between them measure sync."""

    def __init__(self, size: int = 1024) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_conv2d(1, 64, 3, padding=1),
            nn.MaxPool2d(1, 1),
            *_conv2d(64, 192, 3, padding=1),
            nn.MaxPool2d(3, (1, 2)),
            *_conv2d(192, 384, 3, padding=1),
            *_conv2d(384, 256, 3, padding=1),
            *_conv2d(256, 256, 3, padding=1),
            nn.MaxPool2d(3, 2),
            *_conv2d(256, 512, (5, 4)),
        )
        self.netfcaud = _head(size)
        self.netfclip = _head(size)
        # Only the first convolution spans time; all that follows treats each of its outputs, a window, by itself.
        self.netcnnlip = nn.Sequential(
            *_conv3d(3, 96, (WINDOW, 7, 7), (1, 2, 2)),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_conv3d(96, 256, (1, 5, 5), (1, 2, 2), (0, 1, 1)),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            *_conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1)),
            *_conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1)),
            *_conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1)),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_conv3d(256, 512, (1, 6, 6)),
        )

    def lip(self, pictures: Tensor) -> Tensor:
        """Features [b * (t - 4), size] of every window of 5 pictures in float [b, 3, t, 224, 224], blue first, 0..255.

        Each picture passes the first convolution once, however many windows it belongs to.
        """
        return self.netfclip(self.lip_convolutions(pictures))

    def lip_convolutions(self, pictures: Tensor) -> Tensor:
        """What `lip` computes before its last layers: [b * (t - 4), 512]."""
        made = self.netcnnlip(pictures)
        return made.transpose(1, 2).flatten(0, 1).flatten(1)

    def sound(self, cepstra: Tensor) -> Tensor:
        """Features [n, size] of windows [n, 1, 13, 20]: 13 cepstral coefficients of 20 frames of 10 ms."""
        return self.netfcaud(torch.flatten(self.netcnnaud(cepstra), 1))


def _conv2d(i: int, o: int, kernel: int | tuple[int, int], padding: int = 0) -> list[nn.Module]:
    return [nn.Conv2d(i, o, kernel, padding=padding), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]


def _conv3d(
    i: int,
    o: int,
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int, int] = (0, 0, 0),
) -> list[nn.Module]:
    return [nn.Conv3d(i, o, kernel, stride, padding), nn.BatchNorm3d(o), nn.ReLU(inplace=True)]


def _head(size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, size))
