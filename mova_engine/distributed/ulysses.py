"""Ulysses: attention over a sharded sequence by exchanging tokens for heads (Jacobs et al., 2023).

Each rank holds some tokens with all heads; during attention it holds all tokens with some heads. The number of tokens
may differ between ranks; nothing is padded.

Exchanges run beside computation. `send` starts that of queries, keys or values as soon as one of them is there; the
heads of a rank are in chunks, and while one chunk is attended to, the next one's queries, keys and values are on their
way, and so is the output of the one before. The backward does the same in the reverse order: a gradient is on its way
until the node that needs it waits (`ops.in_flight`). Heads do not depend on each other, so that values are the same.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mova_engine.config.mesh import head_chunks
from mova_engine.distributed.collectives import Group
from mova_engine.distributed.ring import Lengths, ring_forward, start_ring_backward
from mova_engine.errors import MovaError
from mova_engine.ops.custom_ops import AttentionKernels, below_autograd, fake_attention, implement, named
from mova_engine.ops.in_flight import Arrival, in_flight, start, wait

# (queries, keys, values) of some heads -> their output.
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
# What `send` returns: the tensor's stand-in for autograd, which has no memory, and its chunks of heads.
Sent = list[Tensor]


def check_heads(heads: int, group: Group) -> None:
    """Raise MovaError if the heads cannot be divided among the ranks."""
    if heads % group.size:
        raise MovaError(f"{heads} heads cannot be divided among {group.size} Ulysses ranks; use ring attention")


def send(x: Tensor, group: Group, lengths: Lengths) -> Sent:
    """Start to exchange x [b, s_rank, h, e] for [b, s, h / p, e] on p ranks. lengths: s of all ranks.

    Returns what `attend` takes. Raises MovaError if h is not a multiple of group.size.
    """
    check_heads(x.shape[2], group)
    return torch.ops.mova.tokens_to_heads(x, lengths, group.rank, group.name)


def attend(
    kernels: AttentionKernels,
    ring: Group,
    blocks: Lengths,
    ulysses: Group,
    lengths: tuple[Lengths, Lengths],
    q: Sent,
    k: Sent,
    v: Sent,
) -> Tensor:
    """Attention to what was sent -> [b, s_rank, h, e], with a gradient.

    ring: the group round which the keys and values of some heads go; blocks: how many tokens each of its ranks has.
    lengths: tokens of queries and of keys in the Ulysses ranks.
    """
    (q_stub, *qs), (k_stub, *ks), (v_stub, *vs) = q, k, v
    place = (*lengths, ulysses.rank, ulysses.name, blocks, ring.name, kernels.name)
    return torch.ops.mova.exchanged_attention(q_stub, k_stub, v_stub, [*qs, *ks, *vs], *place)[0]


def attend_without_gradient(
    attention: Attention, ulysses: Group, lengths: Lengths, q: Sent, k: Sent, v: Sent
) -> Tensor:
    """The same with any attention, which is given some heads of q, k, v and returns their output alone. Empties q, k
    and v, so that their memory is free as soon as they have served.
    """
    (stub, *qs), (_, *ks), (_, *vs) = q, k, v
    chunks = [*qs, *ks, *vs]
    for each in (q, k, v, qs, ks, vs):
        each.clear()
    return _attend(lambda *parts: (attention(*parts),), ulysses, lengths, stub.shape, chunks)[0]


def _attend(
    attention: Callable[..., tuple[Tensor, ...]],
    group: Group,
    lengths: Lengths,
    shape: Sequence[int],
    chunks: list[Tensor],
) -> list[Tensor]:
    """[output in tokens, then what the attention returns of each chunk of heads, of which it is given q, k, v]. chunks:
    all of q, then of k, then of v.
    """
    out, count = chunks[0].new_empty(shape), len(chunks) // 3
    used = chunks[0].new_empty(0)
    kept: list[Tensor] = []
    returning: list[Arrival] = []
    for i in range(count):
        start(*_next(chunks, i, count))
        parts = [wait(x) for x in chunks[i::count]]
        chunks[i::count] = [used] * 3
        results = attention(*parts)
        del parts
        returning.append(_to_tokens(results[0], group, lengths, i, count))
        kept += results
    for arrive in returning:
        arrive(out)
    return [out, *kept]


def _next(chunks: list[Tensor], i: int, count: int) -> list[Tensor]:
    """q, k and v of the chunk after chunk i; nothing after the last."""
    return chunks[i + 1 :: count] if i + 1 < count else []


def _tokens_to_heads(x: Tensor, lengths: Lengths, rank: int, group: str) -> Sent:
    """x [b, s_rank, h, e] -> [a stand-in for x, then chunks [b, s, h / p / chunks, e], the first on its way]."""
    chunks = _to_heads(x, named(group), lengths)
    start(chunks[0])
    return [x.new_zeros(()).expand(x.shape), *chunks]


def _fake_tokens_to_heads(x: Tensor, lengths: Lengths, rank: int, group: str) -> Sent:
    b, _, heads, e = x.shape
    share = heads // len(lengths)
    count = head_chunks(share)
    chunks = (x.new_empty((b, sum(lengths), share // count, e)) for _ in range(count))
    return [x.new_empty(()).expand(x.shape), *chunks]


class _HeadExchange(torch.autograd.Function):
    """The backward of the attention sends the gradient back; here it is waited for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *place: Any) -> tuple[Tensor, ...]:
        stub, *chunks = below_autograd("tokens_to_heads", x, *place)
        ctx.mark_non_differentiable(*chunks)
        ctx.set_materialize_grads(False)
        return stub, *chunks

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        return None if grad is None else torch.ops.mova.received(grad), None, None, None


implement(
    "tokens_to_heads", _tokens_to_heads, _fake_tokens_to_heads, lambda x, *place: list(_HeadExchange.apply(x, *place))
)


def _inner(blocks: Lengths, ring: str, kernels: str) -> tuple[Callable, Callable]:
    """Attention to some heads, of one rank or round a ring: its forward, and its backward, which returns a function
    that waits for the gradients.
    """
    if named(ring).size > 1:
        place = {"lengths": blocks, "group": ring, "kernels": kernels}
        return partial(ring_forward, **place), partial(start_ring_backward, **place)

    def backward(*args: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        grads = tuple(x.contiguous() for x in named(kernels).backward(*args))
        return lambda: grads

    return named(kernels).own, backward


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunks: list[Tensor],
    lengths: Lengths,
    key_lengths: Lengths,
    rank: int,
    group: str,
    *place: Any,
) -> list[Tensor]:
    """[output [b, s_rank, h, e], then output and log-sum-exp of each chunk of heads]. q, k, v: stand-ins."""
    attention, _ = _inner(*place)

    def contiguous(*parts: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.contiguous() for x in attention(*parts))

    return _attend(contiguous, named(group), lengths, q.shape, list(chunks))


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, chunks: list[Tensor], *place: Any) -> list[Tensor]:
    results = (fake_attention(x, x, x) for x in chunks[: len(chunks) // 3])
    return [q.new_empty(q.shape), *(x for pair in results for x in pair)]


def _backward(
    dout: Tensor,
    chunks: list[Tensor],
    results: list[Tensor],
    wanted: list[bool],
    lengths: Lengths,
    key_lengths: Lengths,
    rank: int,
    group: str,
    *place: Any,
) -> list[Tensor]:
    """Those of the gradients of q, k, v [b, s_rank, h, e] that are wanted, on their way. results: the forward's, of
    each chunk of heads.
    """
    ulysses, count, (_, differentiated) = named(group), len(chunks) // 3, _inner(*place)
    round_ring = named(place[1]).size > 1
    b, _, heads, e = dout.shape
    tokens = (lengths, key_lengths, key_lengths)
    returning: tuple[list[Arrival], ...] = ([], [], [])

    def send_back(i: int, grads: Callable[[], tuple[Tensor, ...]]) -> None:
        found = grads()
        # In the order in which the backward of what was sent will ask for them: keys were sent last.
        for which in (1, 0, 2):
            if wanted[which]:
                returning[which].append(_to_tokens(found[which], ulysses, tokens[which], i, count))

    incoming = _to_heads(dout, ulysses, lengths)
    used, before = dout.new_empty(0), None
    for i in range(count):
        # Under checkpointing that exchanges again, the forward's q, k and v are on their way too.
        start(*chunks[i::count], *incoming[i : i + 2], *_next(chunks, i, count))
        parts = [wait(x) for x in (incoming[i], *chunks[i::count])]
        incoming[i] = used
        grads = differentiated(*parts, *results[2 * i : 2 * i + 2])
        del parts
        if not round_ring:
            send_back(i, grads)
            continue
        # The last of a ring's gradients travel while the next heads are differentiated.
        if before is not None:
            before()
        before = partial(send_back, i, grads)
    if before is not None:
        before()
    sizes = [(b, n[rank], heads, e) for n in tokens]
    return [
        in_flight(dout.new_empty(size), arrival=_all(each))
        for size, each, asked in zip(sizes, returning, wanted, strict=True)
        if asked
    ]


def _all(arrivals: Sequence[Arrival]) -> Arrival:
    def arrive(into: Tensor) -> None:
        for each in arrivals:
            each(into)

    return arrive


def _fake_backward(
    dout: Tensor, chunks: list[Tensor], results: list[Tensor], wanted: list[bool], lengths: Lengths, *place: Any
) -> list[Tensor]:
    key_lengths, rank, *_ = place
    b, _, heads, e = dout.shape
    tokens = (lengths, key_lengths, key_lengths)
    return [dout.new_empty((b, n[rank], heads, e)) for n, asked in zip(tokens, wanted, strict=True) if asked]


class _ExchangedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, place: tuple[Any, ...], q: Tensor, k: Tensor, v: Tensor, *chunks: Tensor) -> Any:
        out, *results = below_autograd("exchanged_attention", q, k, v, list(chunks), *place)
        ctx.save_for_backward(*chunks, *results)
        ctx.place, ctx.chunks = place, len(chunks)
        ctx.mark_non_differentiable(*results)
        ctx.set_materialize_grads(False)
        return out, *results

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        none = (None,) * ctx.chunks
        wanted = list(ctx.needs_input_grad[1:4])
        if dout is None:
            return None, None, None, None, *none
        saved = ctx.saved_tensors
        chunks, results = list(saved[: ctx.chunks]), list(saved[ctx.chunks :])
        grads = iter(torch.ops.mova.exchanged_attention_backward(dout, chunks, results, wanted, *ctx.place))
        return None, *(next(grads) if asked else None for asked in wanted), *none


def _differentiable(q: Tensor, k: Tensor, v: Tensor, chunks: list[Tensor], *place: Any) -> list[Tensor]:
    return list(_ExchangedAttention.apply(place, q, k, v, *chunks))


implement("exchanged_attention", _forward, _fake_forward, _differentiable)
implement("exchanged_attention_backward", _backward, _fake_backward)


def _to_heads(x: Tensor, group: Group, lengths: Lengths) -> list[Tensor]:
    """x [b, s_rank, h, e] -> chunks [b, s, h / p / chunks, e] that are to be exchanged, on p ranks: see `in_flight`."""
    b, s, heads, e = x.shape
    count = head_chunks(heads // group.size)
    part = heads // group.size // count
    packed = x.unflatten(2, (group.size, count, part)).permute(3, 2, 0, 1, 4, 5).reshape(count, -1)
    each = [b * n * part * e for n in lengths]

    def chunk(pieces: Tensor) -> Tensor:
        def transfer(into: Tensor) -> Arrival:
            # Of one clip what the ranks send is in its place at once.
            direct = into.view(-1) if b == 1 else None
            finish = group.all_to_all(pieces, [b * s * part * e] * group.size, each, direct)

            def arrive(into: Tensor) -> None:
                received = finish()
                if b > 1:
                    parts = [x.view(b, n, part, e) for x, n in zip(received.split(each), lengths, strict=True)]
                    torch.cat(parts, 1, out=into)

            return arrive

        return in_flight(x.new_empty((b, sum(lengths), part, e)), transfer)

    return [chunk(pieces) for pieces in packed]


def _to_tokens(x: Tensor, group: Group, lengths: Lengths, i: int, count: int) -> Arrival:
    """Start the reverse with chunk `i` of `count`, x [b, s, h / p / count, e]. Returns a function that waits for it and
    puts it in its heads of [b, s_rank, h, e].
    """
    b, _, part, e = x.shape
    own = lengths[group.rank]
    pieces = x.reshape(-1) if b == 1 else torch.cat([each.reshape(-1) for each in x.split(list(lengths), 1)])
    finish = group.all_to_all(pieces, [b * n * part * e for n in lengths], [b * own * part * e] * group.size)

    def arrive(into: Tensor) -> None:
        received = finish().view(group.size, b, own, part, e).permute(1, 2, 0, 3, 4)
        into.view(b, own, group.size, count, part, e)[:, :, :, i] = received

    return arrive
