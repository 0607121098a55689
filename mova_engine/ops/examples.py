"""Small inputs of each operator, under its name: `(generator, device, dtype) -> inputs`.

An implementation is tried on them before it is bound on a CPU.
"""

from mova_engine.ops import inputs
from mova_engine.ops.inputs import sized

# Sizes: (batch, tokens, channels, head dim), (batch, tokens, in, out), (batch, q, k, heads, head dim).
# From 64 queries and keys on torch's attention on a CPU packs half precision for AMX, which fails where
# ATEN_CPU_CAPABILITY limits torch alone.
_ROWS, _GEMM, _ATTENTION = (2, 81, 96, 48), (2, 69, 96, 288), (1, 97, 97, 2, 128)

rms_norm_rope = sized(inputs.rms_norm_rope(interleaved=True), *_ROWS)
rms_norm = sized(inputs.rms_norm, *_ROWS)
norm_modulate = sized(inputs.norm_modulate, *_ROWS)
layer_norm = sized(inputs.layer_norm, *_ROWS)
gate_residual = sized(inputs.gate_residual, *_ROWS)
gate_residual_norm = sized(inputs.gate_residual_norm, *_ROWS)
gate_residual_norm_modulate = sized(inputs.gate_residual_norm_modulate, *_ROWS)
bias_gelu = sized(inputs.bias_gelu, *_ROWS)
linear_gelu = sized(inputs.linear, *_GEMM)
lora_linear = sized(inputs.lora_linear, *_GEMM)
quantize_rows = sized(inputs.quantize_rows(factor=False), *_ROWS)
fp8_linear = sized(inputs.fp8_linear(adapter=True), *_GEMM)
fp8_trained_linear = sized(inputs.linear, *_GEMM)
# Inputs of quantised weights come in blocks of up to 256.
_QUANTISED = (2, 69, 256, 288)
nf4_linear = sized(inputs.nf4_linear(double=True), *_QUANTISED)
int8_linear = sized(inputs.int8_linear(adapter=True), *_QUANTISED)
gguf_linear = sized(inputs.gguf_linear("Q4_K"), *_QUANTISED)
attention = sized(inputs.attention, *_ATTENTION)
attention_lse = sized(inputs.attention, *_ATTENTION)
attention_backward = sized(inputs.attention_backward, *_ATTENTION)
merge_lse = inputs.merge_lse(shards=3)
adamw = adamw_8bit = inputs.adamw()
newton_schulz = sized(inputs.matrices(), 3, 40, 24)
clip_grad_norm = inputs.gradients(scale=3.0)
