"""What the model is given of one modality: latents, their noise levels, text and places in time.

The forward takes two of these, the video's and the audio's (the form is LTX-2's habit). Which latents are given and
which are generated is said here, so that sound from pictures, pictures from sound, continuation and retakes are the
same forward with other values.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.models.context_parallel import NO_CP, Sharding

# Under context parallelism, the fewest consecutive tokens with one timestep that are worth a row of modulation: below
# it the rows, float32 [6, d] each, would take more memory than the tokens.
LEAST_GROUP = 16


@dataclass(frozen=True)
class Modality:
    """One modality of a batch of clips, as the network sees it. A position is a latent frame or an audio latent.

    latents: the video's network input [b, 36, t, h, w] (noisy latents, mask, condition) or the audio's [b, 128, l].
    timestep: float32 on the 0..1000 scale, best on the CPU: its embedding starts there in float64, which not every
        device has. [b] or [1]: of whole clips. [b, g] or [1, g]: a table of the distinct ones, with `index`.
    text: features [b, n, text_dim].
    index: for each position, its column of `timestep`.
    given: for each position, whether its latents are given, not generated: its timestep is then 0, whatever the table
        says. The latents there must be the clean ones.
    times: for each position, its place in time, in positions; without it 0, 1, 2, ...: a window of a longer clip
        begins later, and given latents may stand anywhere.
    """

    latents: Tensor
    timestep: Tensor
    text: Tensor
    index: tuple[int, ...] | None = None
    given: tuple[bool, ...] | None = None
    times: tuple[float, ...] | None = None

    @property
    def batch(self) -> int:
        """Clips."""
        return self.latents.shape[0]

    def check(self, positions: int) -> None:
        """MovaError where the fields do not fit each other or a clip of this many positions."""
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
        """(timesteps [b, g] or [1, g], index into them), with the given positions' zero; index None: g is 1, and the
        timestep is all positions'.
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
    """(video, audio) of whole clips, with one text for both."""
    return Modality(video, video_timestep, text), Modality(audio, audio_timestep, text)


def group_columns(index: tuple[int, ...], tokens_per_position: int, sharding: Sharding = NO_CP) -> tuple[int, ...]:
    """Cut this process's tokens into groups of equal length, each of one timestep: the column of each group.

    The length is the greatest that divides every run of equal columns and every process's part, so that a stream
    [b, s, d] can be viewed as [b * groups, s / groups, d] with a row of modulation for each group, by any operator that
    takes a row per clip. MovaError where the parts of several processes cut the runs into too small pieces.
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
