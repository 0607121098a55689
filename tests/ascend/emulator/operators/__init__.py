"""torch_npu's own operators on CPU tensors: those that the engine calls, and those that torch_npu calls for it."""

from ascend.emulator.operators.attention import OPERATORS as ATTENTION
from ascend.emulator.operators.elementwise import OPERATORS as ELEMENTWISE
from ascend.emulator.operators.norms import OPERATORS as NORMS

NPU_OPERATORS = {**ATTENTION, **ELEMENTWISE, **NORMS}
