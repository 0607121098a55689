"""Rotary tables: cos and sin of the angles in float32 [tokens, head_dim/2]; the towers' come from float64 angles.

Rotary embedding: Su et al., 2021. The towers rotate interleaved pairs, the bridge rotates halves (aligned RoPE).
"""

from collections.abc import Callable

import torch
import torch.nn as nn
from torch import Tensor

from mova_engine.backend.host_copies import to_device

THETA = 10000.0


def _angles(positions: Tensor, dim: int) -> Tensor:
    """Angles `position * theta^(-2i/dim)`, [positions, dim/2], float64."""
    frequencies = THETA ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return torch.outer(positions.to(torch.float64), frequencies)


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head given to frame, row and column: 128 -> (44, 42, 42). Each is even; the frame takes the
    rest.
    """
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


# Places in time of a clip's latent frames or audio latents, in these units; None: 0, 1, 2, ...
Times = tuple[float, ...] | None


def _places(count: int, times: Times, dtype: torch.dtype) -> Tensor:
    return torch.arange(count, dtype=dtype) if times is None else torch.tensor(times, dtype=dtype)


def video_angles(grid: tuple[int, int, int], head_dim: int, times: Times = None) -> Tensor:
    """Angles of every token of a (frames, rows, columns) grid, frame-major: [t*h*w, head_dim/2], float64."""
    axes = []
    for axis, (size, dim) in enumerate(zip(grid, axis_dims(head_dim), strict=True)):
        shape = [1, 1, 1, dim // 2]
        shape[axis] = size
        places = _places(size, times if axis == 0 else None, torch.float64)
        axes.append(_angles(places, dim).view(shape).expand(*grid, dim // 2))
    return torch.cat(axes, -1).reshape(-1, head_dim // 2)


def audio_angles(tokens: int, head_dim: int, times: Times = None) -> Tensor:
    """Angles of a plain one-dimensional sequence: [tokens, head_dim/2], float64."""
    return _angles(_places(tokens, times, torch.float64), head_dim)


def aligned_video_positions(
    frames: int, fps: float, audio_fps: float, first_frame_bias: bool, times: Times = None
) -> Tensor:
    """Position of each latent video frame on the audio tower's axis (one unit = one audio token), float32 [frames].

    A latent frame spans four pictures: frame i lies at i * audio_fps * 4/fps. With first-frame bias the first latent
    holds one picture only: 0 for i = 0, then (1/fps + (i-1) * 4/fps) * audio_fps.
    """
    # Float32 throughout, as the released bridge was trained: at position 402 its angles are 1e-5 rad off exact ones.
    index = _places(frames, times, torch.float32)
    if not first_frame_bias:
        return index * (audio_fps * 4.0 / fps)
    return torch.where(index == 0, 0.0, (1.0 / fps + (index - 1) * (4.0 / fps)) * audio_fps)


def _table(angles: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    return to_device(angles.cos().float(), device), to_device(angles.sin().float(), device)


class RopeTables(nn.Module):
    """The rotary tables that a model has used last, for its next forward: buffers that are no part of what is saved.

    They depend on the clip, of which a run may have several sizes, so they are made when they are first asked for. A
    model that is moved, or cast to another dtype, drops them: tables stay float32 in models of any dtype.
    """

    def __init__(self, most: int = 4) -> None:
        super().__init__()
        self.most = most
        # Names of the two buffers, by what they were made of, the oldest first.
        self.kept: dict[tuple[object, ...], tuple[str, str]] = {}

    def get(self, make: Callable[..., tuple[Tensor, Tensor]], *arguments: object) -> tuple[Tensor, Tensor]:
        """`make(*arguments)`, kept or made anew; beyond `most` the oldest is dropped. Compiled code makes its own."""
        if torch.compiler.is_compiling():
            return make(*arguments)
        key = (make.__name__, *arguments)
        if key in self.kept:
            cos, sin = map(self.get_buffer, self.kept[key])
            return cos, sin
        table = make(*arguments)
        # Tensors without data, and those made in inference mode, serve the forward that made them and no other.
        if type(table[0]) is Tensor and not torch.is_inference_mode_enabled():
            self._keep(key, table)
        return table

    def _keep(self, key: tuple, table: tuple[Tensor, Tensor]) -> None:
        full = len(self.kept) >= self.most
        names = self.kept.pop(next(iter(self.kept))) if full else (f"cos{len(self.kept)}", f"sin{len(self.kept)}")
        for name, x in zip(names, table, strict=True):
            self.register_buffer(name, x, persistent=False)
        self.kept[key] = names

    def _apply(self, fn: Callable, recurse: bool = True) -> "RopeTables":
        # What torch calls to move or cast a module.
        self.kept.clear()
        self._buffers.clear()
        return self


def video_rope(
    grid: tuple[int, int, int], head_dim: int, device: torch.device, times: Times = None
) -> tuple[Tensor, Tensor]:
    """(cos, sin) of the video tower."""
    return _table(video_angles(grid, head_dim, times), device)


def audio_rope(tokens: int, head_dim: int, device: torch.device, times: Times = None) -> tuple[Tensor, Tensor]:
    """(cos, sin) of the audio tower."""
    return _table(audio_angles(tokens, head_dim, times), device)


def aligned_audio_rope(tokens: int, head_dim: int, device: torch.device, times: Times = None) -> tuple[Tensor, Tensor]:
    """(cos, sin) of audio tokens in the bridge: position j for token j."""
    return _aligned_table(_places(tokens, times, torch.float32), head_dim, device)


def aligned_video_rope(
    grid: tuple[int, int, int],
    fps: float,
    audio_fps: float,
    first_frame_bias: bool,
    head_dim: int,
    device: torch.device,
    times: Times = None,
) -> tuple[Tensor, Tensor]:
    """(cos, sin) of video tokens in the bridge; all tokens of a frame share its position in time."""
    frames, rows, columns = grid
    positions = aligned_video_positions(frames, fps, audio_fps, first_frame_bias, times)
    return _aligned_table(positions.repeat_interleave(rows * columns), head_dim, device)


def _aligned_table(positions: Tensor, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    frequencies = 1.0 / THETA ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    return _table(torch.outer(positions.float(), frequencies), device)
