"""Layers of the DAC audio autoencoder. Sub-module names give the released checkpoint's parameter names.

Source: Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN", NeurIPS 2023; the Snake activation: Ziyin,
Hartwig, Ueda, "Neural Networks Fail to Learn Periodic Functions and How to Fix It", NeurIPS 2020.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Convolution(nn.Module):
    """Kernel and bias of a convolution; the kernel is one parameter, or direction `weight_v` times length `weight_g`.

    Weight norm: weight = g * v / |v|, the norm taken over all dimensions but the first (for a transposed convolution
    that first dimension is the input channels).
    """

    def __init__(self, shape: tuple[int, int, int], outputs: int, weight_norm: bool, **factory: Any) -> None:
        super().__init__()
        kernel = nn.init.trunc_normal_(torch.empty(shape, **factory), std=0.02)
        if weight_norm:
            self.weight_g = nn.Parameter(kernel.norm(dim=(1, 2), keepdim=True))
            self.weight_v = nn.Parameter(kernel)
        else:
            self.weight = nn.Parameter(kernel)
        self.bias = nn.Parameter(torch.zeros(outputs, **factory))

    def kernel(self) -> Tensor:
        """The convolution's weight."""
        if not hasattr(self, "weight_g"):
            return self.weight
        return self.weight_v * (self.weight_g / self.weight_v.norm(dim=(1, 2), keepdim=True))

    @torch.no_grad()
    def fuse_weight_norm(self) -> None:
        """Replace `weight_g` and `weight_v` by the one `weight` they give."""
        if hasattr(self, "weight_g"):
            kernel = self.kernel()
            del self.weight_g, self.weight_v
            self.weight = nn.Parameter(kernel)


class Conv1d(Convolution):
    """Convolution [b, in, n] -> [b, out, n'] whose padding keeps n (stride 1), or gives n / stride."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int,
        *,
        weight_norm: bool,
        stride: int = 1,
        dilation: int = 1,
        **factory: Any,
    ) -> None:
        super().__init__((outputs, inputs, width), outputs, weight_norm, **factory)
        self.stride, self.dilation = stride, dilation
        self.padding = (width - 1) * dilation // 2 if stride == 1 else math.ceil(stride / 2)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv1d(x, self.kernel(), self.bias, self.stride, self.padding, self.dilation)


class ConvTranspose1d(Convolution):
    """Transposed convolution [b, in, n] -> [b, out, n * stride], kernel 2 * stride."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, weight_norm: bool, **factory: Any) -> None:
        super().__init__((inputs, outputs, 2 * stride), outputs, weight_norm, **factory)
        self.stride, self.padding = stride, math.ceil(stride / 2)
        # An odd stride would lose its last sample.
        self.output_padding = stride % 2

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel()
        return functional.conv_transpose1d(x, kernel, self.bias, self.stride, self.padding, self.output_padding)


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha, alpha per channel."""

    def __init__(self, channels: int, **factory: Any) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, **factory))

    def forward(self, x: Tensor) -> Tensor:
        # 1e-9 as in the released model: alpha may be zero.
        return x + (self.alpha * x).sin().square() / (self.alpha + 1e-9)


class ResidualUnit(nn.Module):
    """x + conv1(snake(conv7(snake(x)))), the seven taps `dilation` samples apart."""

    def __init__(self, channels: int, dilation: int, **options: Any) -> None:
        super().__init__()
        factory = {k: v for k, v in options.items() if k != "weight_norm"}
        self.block = nn.Sequential(
            Snake(channels, **factory),
            Conv1d(channels, channels, 7, dilation=dilation, **options),
            Snake(channels, **factory),
            Conv1d(channels, channels, 1, **options),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


def _residual_units(channels: int, **options: Any) -> list[nn.Module]:
    return [ResidualUnit(channels, dilation, **options) for dilation in (1, 3, 9)]


class EncoderBlock(nn.Module):
    """[b, inputs, n] -> [b, 2 * inputs, n / stride]."""

    def __init__(self, inputs: int, stride: int, *, weight_norm: bool, **factory: Any) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *_residual_units(inputs, weight_norm=weight_norm, **factory),
            Snake(inputs, **factory),
            Conv1d(inputs, 2 * inputs, 2 * stride, stride=stride, weight_norm=weight_norm, **factory),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class DecoderBlock(nn.Module):
    """[b, inputs, n] -> [b, inputs / 2, n * stride]."""

    def __init__(self, inputs: int, stride: int, *, weight_norm: bool, **factory: Any) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Snake(inputs, **factory),
            ConvTranspose1d(inputs, inputs // 2, stride=stride, weight_norm=weight_norm, **factory),
            *_residual_units(inputs // 2, weight_norm=weight_norm, **factory),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class Encoder(nn.Module):
    """Waveform [b, 1, n] -> features [b, latent_dim, n / product of rates]; the width doubles with every rate."""

    def __init__(self, dim: int, rates: Sequence[int], latent_dim: int, *, weight_norm: bool, **factory: Any) -> None:
        super().__init__()
        layers: list[nn.Module] = [Conv1d(1, dim, 7, weight_norm=weight_norm, **factory)]
        for rate in rates:
            layers.append(EncoderBlock(dim, rate, weight_norm=weight_norm, **factory))
            dim *= 2
        layers += [Snake(dim, **factory), Conv1d(dim, latent_dim, 3, weight_norm=weight_norm, **factory)]
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class Decoder(nn.Module):
    """Features [b, latent_dim, t] -> waveform [b, 1, t * product of rates] in (-1, 1); each rate halves the width."""

    def __init__(self, latent_dim: int, dim: int, rates: Sequence[int], *, weight_norm: bool, **factory: Any) -> None:
        super().__init__()
        layers: list[nn.Module] = [Conv1d(latent_dim, dim, 7, weight_norm=weight_norm, **factory)]
        for rate in rates:
            layers.append(DecoderBlock(dim, rate, weight_norm=weight_norm, **factory))
            dim //= 2
        layers += [Snake(dim, **factory), Conv1d(dim, 1, 7, weight_norm=weight_norm, **factory), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)
