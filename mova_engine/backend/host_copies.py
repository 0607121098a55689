"""Small tensors on their way from the host to a device, without a wait."""

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """x on `device`, in `dtype` (None: its own).

    A copy from pageable host memory waits until the device has done all that it was given, and the device then for the
    host's next operation. From pinned memory it is one more operation of the current stream.
    """
    if x.device.type != "cpu" or device.type == "cpu":
        return x.to(device, dtype)
    return (x if dtype is None else x.to(dtype)).pin_memory().to(device, non_blocking=True)
