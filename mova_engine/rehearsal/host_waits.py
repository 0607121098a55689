"""Counts the times that the host waits for the device in a step.

While it waits the host gives the device nothing more to do, and the device, once it is done, waits for the host. Values
that are read, copies between host and device that are not made from pinned memory, and operations whose result's size
depends on values all wait. What is read of a device that has had nothing to do since the last wait is free, and is not
counted.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mova_engine.rehearsal.memory_tracker import is_wrapped, tensors_in

_READ = "a value is read"
_COPIED = "a copy from or to pageable memory"
_SIZED = "a size depends on values"
_aten = torch.ops.aten
_READING = {_aten._local_scalar_dense.default, _aten.equal.default, _aten.is_nonzero.default}
_SIZING = {
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten._unique2.default,
    _aten.unique_consecutive.default,
    _aten.repeat_interleave.Tensor,
}
_COPYING = {_aten._to_copy.default, _aten.copy_.default}
_PINNING = _aten._pin_memory.default


class HostWaits(TorchDispatchMode):
    """Counts the waits for a device of `kind` inside the with-block, by stage and reason. kind "cpu": none.

    stage: what the step has come to, set by the caller.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.stage = ""
        self._kind, self._busy = kind, False
        self._counts: Counter[str] = Counter()
        # Storages of pinned tensors, held so that no other one gets their place.
        self._pinned: list[Any] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if is_wrapped(types):
            return NotImplemented
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._kind != "cpu":
            self._note(func, args, kwargs, result)
        return result

    def counts(self) -> dict[str, int]:
        """How often, by "stage: reason"."""
        return dict(sorted(self._counts.items()))

    def forget(self) -> None:
        """Set all counts to zero."""
        self._counts.clear()
        self._pinned.clear()

    def _note(self, func: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        if func is _PINNING:
            self._pinned.append(result.untyped_storage())
            return
        given, made = tensors_in((*args, *kwargs.values())), tensors_in((result,))
        here = any(x.device.type == self._kind for x in (*given, *made))
        if not here:
            return
        reason = self._reason(func, given, made, kwargs, args)
        if reason is None:
            # Views are no work.
            self._busy = self._busy or not _is_view(func)
        elif self._busy:
            self._counts[f"{self.stage}: {reason}" if self.stage else reason] += 1
            self._busy = False

    def _reason(
        self, func: Any, given: list[Tensor], made: list[Tensor], kwargs: dict[str, Any], args: tuple
    ) -> str | None:
        if func in _READING:
            return _READ
        if func in _SIZING:
            return _SIZED
        if func in _COPYING:
            source, target = (given[1], given[0]) if func is _aten.copy_.default else (given[0], made[0])
            if source.device.type == target.device.type:
                return None
            last = args[2] if func is _aten.copy_.default and len(args) > 2 else kwargs.get("non_blocking", False)
            host = source if source.device.type == "cpu" else target
            pinned = any(host.untyped_storage()._cdata == each._cdata for each in self._pinned)
            return None if last and (pinned or host is target) else _COPIED
        return None


def _is_view(func: Any) -> bool:
    return any(x.alias_info is not None and not x.alias_info.is_write for x in func._schema.returns)
