"""The model's input of one modality: latents, timesteps, text features and positions in time.

The forward takes two of these, the video's and the audio's (a design of LTX-2). Each states which of its latents are
given and which are to be generated, so that one forward serves video to audio, audio to video, continuation of a clip,
and generating a part of it again.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.models.context_parallel import NO_CP, Sharding

# Under context parallelism, the fewest consecutive tokens that may share a row of modulation. With fewer, the rows
# (float32 [6, d] each) would take more memory than the tokens.
LEAST_GROUP = 16


@dataclass(frozen=True)
class Modality:
    """One modality of a batch of clips, as the network's input. A *position* is a latent frame or an audio latent.

    latents: the video's input [b, 36, t, h, w] (noisy latents 16, mask 4, condition 16; `video_input`) or the audio's
        noisy latents [b, 128, l].
    timestep: float32, from 0 (clean) to 1000 (noise), preferably on the CPU, where its embedding is computed in
        float64. [b] or [1]: one per clip. [b, g] or [1, g]: a table of the distinct timesteps, with `index`.
    text: text features [b, n, text_dim].
    index: for each position, its column of `timestep`; None: one timestep per clip.
    given: for each position, whether its latents are given (clean, not generated). Their timestep is then 0, whatever
        the table holds. None: no position is given.
    times: for each position, its time on the clip's axis, in positions. None: 0, 1, 2, ... Set it for a window of a
        longer clip.
    """

    latents: Tensor
    timestep: Tensor
    text: Tensor
    index: tuple[int, ...] | None = None
    given: tuple[bool, ...] | None = None
    times: tuple[float, ...] | None = None

    @property
    def batch(self) -> int:
        """Number of clips, b."""
        return self.latents.shape[0]

    def check(self, positions: int) -> None:
        """Raise MovaError if the fields do not fit each other, or a clip of `positions` positions."""
        if self.text.shape[0] != self.batch:
            raise MovaError(f"text has batch {self.text.shape[0]} but the latents have batch {self.batch}")
        for name in ("index", "given", "times"):
            value = getattr(self, name)
            if value is not None and len(value) != positions:
                raise MovaError(f"{name} has {len(value)} entries but the clip has {positions} positions in time")
        table = self.timestep
        if table.shape[:1] not in ((1,), (self.batch,)) or table.ndim != (1 if self.index is None else 2):
            kind = "one per clip" if self.index is None else "a table of distinct ones with an index"
            expected = f"[1] or [{self.batch}]" if self.index is None else f"[1, g] or [{self.batch}, g]"
            raise MovaError(f"timestep must have shape {expected} ({kind}), got {list(table.shape)}")
        if self.index is not None and not all(0 <= column < table.shape[1] for column in self.index):
            raise MovaError(f"index must be of the timestep table's columns 0..{table.shape[1] - 1}, got {self.index}")

    def noise_levels(self) -> tuple[Tensor, tuple[int, ...] | None]:
        """(timesteps [b, g] or [1, g], index into their columns), with timestep 0 for given positions. index None: g is
        1, and all positions have that timestep.
        """
        table = self.timestep.unsqueeze(1) if self.index is None else self.timestep
        if self.given is None or not any(self.given):
            return table, self.index
        if all(self.given):
            return torch.zeros_like(table[:, :1]), None
        index = self.index or (0,) * len(self.given)
        clean = table.shape[1]
        table = torch.cat([table, torch.zeros_like(table[:, :1])], 1)
        return table, tuple(clean if given else column for given, column in zip(self.given, index, strict=True))


def modalities(
    video: Tensor, audio: Tensor, text: Tensor, video_timestep: Tensor, audio_timestep: Tensor
) -> tuple[Modality, Modality]:
    """The (video, audio) inputs of clips with one timestep each and the same text features."""
    return Modality(video, video_timestep, text), Modality(audio, audio_timestep, text)


def group_columns(index: tuple[int, ...], tokens_per_position: int, sharding: Sharding = NO_CP) -> tuple[int, ...]:
    """Divide this process's tokens into groups of equal length, each with one timestep; return each group's column.

    The length is the greatest common divisor of all runs of equal columns and of the processes' boundaries. Operators
    that take one row of modulation per clip can then view a stream [b, s, d] as [b * groups, s / groups, d], with a row
    for each group. Raises MovaError if the boundaries of several processes make the groups too short.
    """
    total = len(index) * tokens_per_position
    changes = [i for i in range(1, len(index)) if index[i] != index[i - 1]]
    if not changes:
        return index[:1]
    starts = sharding.starts(total)
    length = math.gcd(total, *(i * tokens_per_position for i in changes), *starts)
    if sharding.size > 1 and length < min(LEAST_GROUP, tokens_per_position):
        raise MovaError(
            f"timesteps that change within a clip need each process's part of its {total} video tokens to keep runs of "
            f"at least {min(LEAST_GROUP, tokens_per_position)} together, but {sharding.size} processes cut them into "
            f"pieces of {length}: choose another context_parallel"
        )
    begin, end = starts[sharding.rank], (*starts, total)[sharding.rank + 1]
    return tuple(index[token // tokens_per_position] for token in range(begin, end, length))
