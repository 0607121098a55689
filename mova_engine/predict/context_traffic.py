"""Formulas for the bytes that a rank sends in a training step on one clip, exact to the byte for any lengths.

Convention: an all-to-all sends (p - 1) / p of a tensor, an all-reduce 2 (p - 1) / p. Only the traffic of context
parallelism is counted, not the sums of gradients or the gathered weights. `distributed.counted_traffic` counts the same
on the process groups.
"""

from dataclasses import dataclass

from mova_engine.config.mesh import MeshShape, choose_mesh, lengths_of
from mova_engine.config.model import MovaConfig

FLOAT32 = 4


@dataclass(frozen=True)
class ContextTraffic:
    """Bytes that one rank sends: in the forward, in the part of it that checkpointing recomputes, in the backward."""

    forward: int
    repeated: int
    backward: int

    @property
    def total(self) -> int:
        return self.forward + self.repeated + self.backward

    def __add__(self, other: "ContextTraffic") -> "ContextTraffic":
        return ContextTraffic(
            self.forward + other.forward, self.repeated + other.repeated, self.backward + other.backward
        )


@dataclass(frozen=True)
class _Sharded:
    """Attention of `heads` heads in which queries and keys are sharded over ring x ulysses ranks; sizes of one rank.

    bytes: of one head of one token (head dim times the element's size, times the batch); wide: the same in float32.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    heads: int
    bytes: int
    wide: int
    ring: int
    ulysses: int
    rank: int

    def _block(self, lengths: tuple[int, ...], index: int) -> tuple[int, ...]:
        first = index % self.ring * self.ulysses
        return lengths[first : first + self.ulysses]

    def _to_heads(self, lengths: tuple[int, ...]) -> int:
        return lengths[self.rank] * (self.heads - self.heads // self.ulysses) * self.bytes

    def _to_tokens(self, lengths: tuple[int, ...]) -> int:
        others = sum(self._block(lengths, self.rank // self.ulysses)) - lengths[self.rank]
        return others * (self.heads // self.ulysses) * self.bytes

    def _shifts(self, steps: range, each: int) -> int:
        here, share = self.rank // self.ulysses, self.heads // self.ulysses
        return sum(2 * sum(self._block(self.keys, here - step)) * share * each for step in steps)

    @property
    def exchange(self) -> int:
        """All-to-all of q, k and v: from tokens to heads."""
        return self._to_heads(self.queries) + 2 * self._to_heads(self.keys)

    @property
    def result(self) -> int:
        """All-to-all of the output: from heads to tokens."""
        return self._to_tokens(self.queries)

    @property
    def keys_round(self) -> int:
        """k and v once round the ring."""
        return self._shifts(range(self.ring - 1), self.bytes)

    @property
    def backward(self) -> int:
        """The output's gradient and those of q, k and v; in a ring also k and v again, with their gradients."""
        gradients = self._shifts(range(1, self.ring), self.wide if self.ring > 2 else self.bytes)
        exchanged = self._to_heads(self.queries) + self._to_tokens(self.queries) + 2 * self._to_tokens(self.keys)
        return exchanged + self.keys_round + gradients

    @property
    def forward(self) -> int:
        return self.exchange + self.keys_round + self.result


def training_traffic(
    config: MovaConfig, shape: MeshShape, checkpointing: str, *, rank: int = 0, batch: int = 1, element: int = 2
) -> ContextTraffic:
    """What rank `rank` of a context-parallel group sends in a step; element: bytes of an activation's element."""
    size = shape.context_parallel
    if size == 1:
        return ContextTraffic(0, 0, 0)
    tokens, head_dim = lengths_of(config.clip.video_tokens, size), config.video.head_dim
    video = _Sharded(
        tokens,
        tokens,
        config.video.num_heads,
        batch * head_dim * element,
        batch * head_dim * FLOAT32,
        shape.ring,
        shape.ulysses,
        rank,
    )
    repeated = {"none": 0, "selective": 0, "out": video.exchange, "full": video.forward}[checkpointing]
    layers = config.video.num_layers
    attention = ContextTraffic(layers * video.forward, layers * repeated, layers * video.backward)
    return attention + _video_to_audio(config, size, checkpointing, batch)


def _video_to_audio(config: MovaConfig, size: int, checkpointing: str, batch: int) -> ContextTraffic:
    """The bridge's merge over ranks: all-reduces of the maximum log-sum-exp, of the weighted outputs and weights, and
    of a gradient.
    """
    head_dim, layers = config.bridge.head_dim, len(config.bridge.layers)
    rows = batch * config.clip.audio_tokens * (config.audio.dim // head_dim)

    def reduced(elements: int) -> int:
        return 2 * (size - 1) * elements * FLOAT32 // size

    forward = layers * (reduced(rows) + reduced(rows * (head_dim + 1)))
    return ContextTraffic(forward, forward if checkpointing == "full" else 0, layers * reduced(rows * head_dim))


def reference_shape(config: MovaConfig, context_parallel: int) -> MeshShape:
    """The mesh of the reference, which also exchanges the audio tower's heads, so that these limit its Ulysses size."""
    return choose_mesh(context_parallel, config.audio.num_heads, context_parallel=context_parallel)


def reference_traffic(
    config: MovaConfig, context_parallel: int, *, rank: int = 0, batch: int = 1, element: int = 2
) -> ContextTraffic:
    """The same for the published reference's scheme: both towers sharded, every attention exchanged, all of the forward
    repeated in the backward. Lengths are padded to a multiple of the ranks.
    """
    shape, size = reference_shape(config, context_parallel), context_parallel
    video, audio = (
        lengths_of(-(-tokens // size) * size, size) for tokens in (config.clip.video_tokens, config.clip.audio_tokens)
    )
    total = ContextTraffic(0, 0, 0)
    for queries, keys, tower, head_dim, layers in (
        (video, video, config.video, config.video.head_dim, config.video.num_layers),
        (audio, audio, config.audio, config.audio.head_dim, config.audio.num_layers),
        (video, audio, config.video, config.bridge.head_dim, len(config.bridge.layers)),
        (audio, video, config.audio, config.bridge.head_dim, len(config.bridge.layers)),
    ):
        each = _Sharded(
            queries,
            keys,
            tower.dim // head_dim,
            batch * head_dim * element,
            batch * head_dim * FLOAT32,
            shape.ring,
            shape.ulysses,
            rank,
        )
        total += ContextTraffic(layers * each.forward, layers * each.forward, layers * each.backward)
    return total
