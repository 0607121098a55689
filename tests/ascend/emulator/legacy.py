"""The few single operators that torch_npu's C++ calls past the dispatcher, by CANN's older interface."""

import ast
import ctypes
import traceback

import torch
import torch.nn.functional as F
from torch import Tensor

from ascend.emulator.memory import tensor_at

_DTYPES = {
    0: torch.float32,
    1: torch.float16,
    2: torch.int8,
    3: torch.int32,
    4: torch.uint8,
    6: torch.int16,
    9: torch.int64,
    11: torch.float64,
    12: torch.bool,
    16: torch.complex64,
    17: torch.complex128,
    27: torch.bfloat16,
}


class _Tensor(ctypes.Structure):
    """As `Tensor` in cann/single_op.c."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("dtype", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dims", ctypes.c_int64 * 16),
    )

    def view(self) -> Tensor:
        dtype, shape = _DTYPES[self.dtype], tuple(self.dims[: max(self.ndim, 0)])
        if not self.data:
            return torch.empty(shape, dtype=dtype)
        strides = torch.empty(shape, device="meta").stride()
        return tensor_at(self.data, shape, strides, dtype)


_Array = ctypes.POINTER(_Tensor)
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_int, _Array, ctypes.c_int, _Array, ctypes.c_char_p)


def _numbers(x: Tensor) -> list[int]:
    return [int(v) for v in x.reshape(-1)]


def _pad(ins: list[Tensor], attributes: dict) -> Tensor:
    """Inputs: x, widths, and the value in mode "constant"; widths pairwise, or all before all after."""
    widths, mode = _numbers(ins[1]), attributes.get("mode", "constant")
    if not attributes.get("paddings_contiguous", True):
        half = len(widths) // 2
        widths = [width for pair in zip(widths[:half], widths[half:], strict=True) for width in pair]
    # torch counts axes from the last.
    pairs = [widths[i : i + 2] for i in range(0, len(widths), 2)]
    value = ins[2].item() if mode == "constant" and len(ins) > 2 and ins[2].numel() else None
    return F.pad(ins[0], [width for pair in reversed(pairs) for width in pair], mode, value)


_OPERATORS = {
    "Fill": lambda ins, attributes: ins[1],
    "ZerosLike": lambda ins, attributes: torch.zeros(()),
    "OnesLike": lambda ins, attributes: torch.ones(()),
    "Identity": lambda ins, attributes: ins[0],
    "TensorMove": lambda ins, attributes: ins[0],
    "Cast": lambda ins, attributes: ins[0],
    "Add": lambda ins, attributes: ins[0] + ins[1],
    "Mul": lambda ins, attributes: ins[0] * ins[1],
    "Transpose": lambda ins, attributes: ins[0].permute(_numbers(ins[1])),
    "ConcatD": lambda ins, attributes: torch.cat(ins, attributes["concat_dim"]),
    "PadV3": _pad,
}


def _copy_view(ins: list[Tensor], out: Tensor) -> None:
    """ViewCopy writes a part of its output. Inputs: target, its size, stride and offset; source, and the same of it."""
    _, size, stride, offset, source, source_size, source_stride, source_offset = ins
    part = out.view(-1).as_strided(_numbers(size), _numbers(stride), int(offset))
    part.copy_(source.reshape(-1).as_strided(_numbers(source_size), _numbers(source_stride), int(source_offset)))


def _run(name: bytes, n_in: int, ins: _Array, n_out: int, outs: _Array, attributes: bytes) -> int:
    """0 when done, 1 for an operator that is not emulated, 2 for an error."""
    operator = _OPERATORS.get(name.decode())
    if operator is None and name != b"ViewCopy":
        return 1
    try:
        with torch.no_grad():
            tensors, out = [ins[i].view() for i in range(n_in)], outs[0].view()
            if operator is None:
                _copy_view(tensors, out)
            else:
                out.copy_(operator(tensors, ast.literal_eval(attributes.decode() + "}")))
    except Exception:  # C code called us: it gets a status, a person the traceback
        traceback.print_exc()
        return 2
    return 0


_callback = _Callback(_run)


def install(library: str) -> None:
    """Let the software CANN call `_run`."""
    ctypes.CDLL(library).emu_set_single_op(_callback)
