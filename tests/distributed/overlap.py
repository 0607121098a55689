"""How exchanges of heads lie beside the computation, in the processes of a World."""

from unittest.mock import patch

import torch
from distributed.device import backend
from distributed.small import HEAD_DIM, HEADS, backward, build, clips, processes

from mova_engine.distributed import ulysses as exchanges
from mova_engine.ops import bind, in_flight


def exchanged_in_order() -> tuple[list[str], list[str], int]:
    """What this rank does in a step, as events in order: until the first attention's backward, and from there on; and
    how many transfers nobody has waited for in the end.
    """
    place, ops, events = processes(None), bind(backend()), []
    group, width = place.context.ulysses, HEADS * HEAD_DIM
    heads = HEADS // group.size // exchanges.head_chunks(HEADS // group.size)

    def noted(name, function, wanted=lambda x, **options: True):
        def call(x, *args, **kwargs):
            if wanted(x, **kwargs):
                events.append(name)
            return function(x, *args, **kwargs)

        return call

    def of_chunk(x):
        return x.shape[2] == heads and x.shape[1] == 64

    def of_tower(x, interleaved, **options):
        # The bridge rotates halves; the backward may rotate once more.
        return x.shape[-1] == width and interleaved and "differentiate" not in events

    group.all_to_all = noted("send", group.all_to_all)
    table = ops.replaced(
        rms_norm_rope=noted("rotate", ops.rms_norm_rope, of_tower),
        attention_lse=noted("attend", ops.attention_lse, of_chunk),
        attention_backward=noted("differentiate", ops.attention_backward, of_chunk),
    )

    backward(build(place.context.operators(table)), clips(64, 1), 0, place.context)
    first = events.index("differentiate")
    return events[:first], events[first:], len(in_flight._started) + len(in_flight._waiting)


def changed_by_head_chunks(ulysses: int, batch: int) -> list[str]:
    """In this rank: gradients that are others, in any bit, where all heads are exchanged and attended to at once."""
    place, found = processes(ulysses), []
    for chunks in (exchanges.head_chunks, lambda share: 1):
        with patch.object(exchanges, "head_chunks", chunks):
            model = build(place.context.operators(bind(backend())))
            backward(model, clips(64, batch), 0, place.context)
            found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    return [name for name, x in found[0].items() if not torch.equal(x, found[1][name])]
