"""The whole model: experts, audio tower and bridge, under the checkpoint's component names."""

import torch
import torch.nn as nn

from mova_engine.config import MovaConfig
from mova_engine.errors import MovaError
from mova_engine.models.audio_dit import AudioDiT
from mova_engine.models.bridge import Bridge
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
        self.audio_dit = AudioDiT(config.audio, ops, device, dtype)
        self.dual_tower_bridge = Bridge(config.bridge, ops, device, dtype)

    def expert(self, index: int) -> VideoDiT:
        """Video expert 0 (high noise) or 1 (low noise); a model with one expert serves both."""
        if index not in (0, 1):
            raise MovaError(f"expert must be 0 (high noise) or 1 (low noise), got {index}")
        return self.video_dit if index == 0 or self.video_dit_2 is None else self.video_dit_2

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Initialise for training from scratch, as Wan does: Xavier linears, small embeddings, zero head.

        The bridge's output projections start at zero, so that an untrained bridge changes nothing.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv3d):
                weight = module.weight.flatten(1)
                if "text_embedding" in name or "time_embedding" in name:
                    weight.normal_(0.0, 0.02, generator=generator)
                else:
                    nn.init.xavier_uniform_(weight, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, NormParameters):
                module.weight.fill_(1.0)
                if module.bias is not None:
                    module.bias.zero_()
        for name, parameter in self.named_parameters():
            if name.endswith(("modulation", "probe")):
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
            elif "head.head" in name or (name.startswith("dual_tower_bridge") and ".inner.o." in name):
                parameter.zero_()
