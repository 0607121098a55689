"""Weights on fake tensors: models with fewer layers, placing weights on a device, counting them."""

from collections.abc import Collection, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from mova_engine.config.model import MovaConfig
from mova_engine.models.layers import Linear
from mova_engine.models.weight_formats import WEIGHT


def with_layers(sizes: MovaConfig, layers: int | None) -> MovaConfig:
    """`sizes` with at most `layers` layers in each tower; None: unchanged."""
    if layers is None:
        return sizes
    video, audio = (replace(tower, num_layers=min(layers, tower.num_layers)) for tower in (sizes.video, sizes.audio))
    bridge = replace(sizes.bridge, visual_layers=video.num_layers, audio_layers=audio.num_layers)
    return replace(sizes, video=video, audio=audio, bridge=bridge)


def place_weights(
    component: nn.Module, device: torch.device, dtype: torch.dtype, only: Collection[str] | None = None
) -> None:
    """Replace a component's meta tensors by uninitialised ones on `device`, as loading it would: in `dtype`, but what
    is held of quantised weights. only: names of the tensors that are replaced; None: all.
    """
    for path, module in component.named_modules():
        plain = True
        if isinstance(module, Linear) and module.weight_format is not None:
            plain = False
            if only is None or f"{path}.{WEIGHT}".removeprefix(".") in only:
                held = {name: torch.empty_like(old, device=device) for name, old in module.held().items()}
                module.hold(module.weight_format, held)
        for name, old in module.named_parameters(recurse=False):
            if (name == WEIGHT and not plain) or (only is not None and f"{path}.{name}".removeprefix(".") not in only):
                continue
            fresh = torch.empty(old.shape, dtype=dtype, device=device)
            setattr(module, name, nn.Parameter(fresh, requires_grad=old.requires_grad))


def local_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield the rows that this process holds of each parameter and buffer, detached."""
    # Imported late: the import takes two seconds.
    from torch.distributed.tensor import DTensor

    for x in (*model.parameters(), *model.buffers()):
        yield x.to_local() if isinstance(x, DTensor) else x.detach()


def weights_by_dtype(model: nn.Module) -> dict[tuple[str, str], int]:
    """The number of weights, by component and dtype."""
    counts: dict[tuple[str, str], int] = {}
    for name, parameter in model.named_parameters():
        key = name.split(".")[0], str(parameter.dtype).removeprefix("torch.")
        counts[key] = counts.get(key, 0) + parameter.numel()
    return counts
