"""Operators of torch_npu and MindIE-SD on CPU tensors: those that the engine calls, or torch_npu calls for it."""

from ascend.emulator.operators.attention import OPERATORS as ATTENTION
from ascend.emulator.operators.elementwise import OPERATORS as ELEMENTWISE
from ascend.emulator.operators.norms import MINDIE as MINDIE_OPERATORS
from ascend.emulator.operators.norms import OPERATORS as NORMS
from ascend.emulator.operators.quantised import OPERATORS as QUANTISED

__all__ = ["MINDIE_OPERATORS", "NPU_OPERATORS"]

NPU_OPERATORS = {**ATTENTION, **ELEMENTWISE, **NORMS, **QUANTISED}
