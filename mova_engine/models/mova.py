"""The whole model: experts, audio tower and bridge, under the checkpoint's component names."""

from collections.abc import Callable

import torch
import torch.nn as nn
from torch import Tensor

from mova_engine.config import MovaConfig
from mova_engine.errors import MovaError
from mova_engine.models.audio_dit import AudioDiT
from mova_engine.models.bridge import Bridge
from mova_engine.models.dual_tower import dual_tower_forward
from mova_engine.models.layers import NormParameters
from mova_engine.models.video_dit import VideoDiT
from mova_engine.ops import OpTable

COMPONENTS = ("video_dit", "video_dit_2", "audio_dit", "dual_tower_bridge")


class Mova(nn.Module):
    """`video_dit` (high noise), `video_dit_2` (low noise; None with one expert), `audio_dit`, `dual_tower_bridge`."""

    def __init__(
        self,
        config: MovaConfig,
        ops: OpTable,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.video_dit = VideoDiT(config.video, ops, device, dtype)
        self.video_dit_2 = VideoDiT(config.video, ops, device, dtype) if config.experts == 2 else None
        if self.video_dit_2 is not None:
            # Experts see the same clips.
            self.video_dit_2.tables = self.video_dit.tables
        self.audio_dit = AudioDiT(config.audio, ops, device, dtype)
        self.dual_tower_bridge = Bridge(config.bridge, ops, device, dtype)

    def expert(self, index: int) -> VideoDiT:
        """Video expert 0 (high noise) or 1 (low noise); a model with one expert serves both."""
        if index not in (0, 1):
            raise MovaError(f"expert must be 0 (high noise) or 1 (low noise), got {index}")
        return self.video_dit if index == 0 or self.video_dit_2 is None else self.video_dit_2

    def forward(self, *inputs: Tensor, expert: int = 0, bridge: bool = True, **options) -> tuple[Tensor, Tensor]:
        """`dual_tower_forward` with one of the video experts, with the bridge or without; the rest is its."""
        connection = self.dual_tower_bridge if bridge else None
        return dual_tower_forward(self.expert(expert), self.audio_dit, connection, *inputs, **options)

    @torch.no_grad()
    def init_weights(
        self, generator: torch.Generator, put: Callable[[nn.Parameter, Tensor], object] = nn.Parameter.copy_
    ) -> None:
        """Initialise for training from scratch, as Wan does: Xavier linears, small embeddings, zero head.

        The bridge's output projections start at zero, so that an untrained bridge changes nothing. Values are drawn
        on the generator's device, one tensor at a time; put: what is done with a parameter and its values.
        """
        source = generator.device
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv3d):
                weight = torch.empty(module.weight.shape, device=source).flatten(1)
                if "text_embedding" in name or "time_embedding" in name:
                    weight.normal_(0.0, 0.02, generator=generator)
                else:
                    nn.init.xavier_uniform_(weight, generator=generator)
                put(module.weight, weight.view(module.weight.shape))
                if module.bias is not None:
                    put(module.bias, torch.zeros(module.bias.shape, device=source))
            elif isinstance(module, NormParameters):
                put(module.weight, torch.ones(module.weight.shape, device=source))
                if module.bias is not None:
                    put(module.bias, torch.zeros(module.bias.shape, device=source))
        for name, parameter in self.named_parameters():
            value = torch.zeros(parameter.shape, device=source)
            if name.endswith(("modulation", "probe")):
                put(parameter, value.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator))
            elif "head.head" in name or (name.startswith("dual_tower_bridge") and ".inner.o." in name):
                put(parameter, value)
            elif name.endswith("condition_scale"):
                put(parameter, value.fill_(1.0))
