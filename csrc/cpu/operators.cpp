// The operators torch.ops.mova_kernels.*: arguments checked, memory provided, rows handed to the kernels in parallel.
// A `scale` and `shift` of [d] are the weight and bias of a LayerNorm, of [b, d] its modulation by (1 + scale) and shift.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "dispatch.h"
#include "rows.h"

namespace mova::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Whether at::parallel_for uses torch's threads: it needs the compiler's OpenMP where torch's own pool is OpenMP's.
bool threaded() {
#if defined(INTRA_OP_PARALLEL)
  return true;
#else
  return false;
#endif
}

struct Angles {
  Tensor cos, sin;
  int64_t half = 0;
  Rotation rotation = kNoRotation;
};

Tensor angle_table(const char* name, const Tensor& table, const Tensor& x) {
  TORCH_CHECK_TYPE(table.is_floating_point(), name, " must be floating point, got ", table.scalar_type());
  TORCH_CHECK_VALUE(
      table.dim() == 2 && table.size(0) == x.size(1),
      name, " must be [s, head dim / 2] for x ", x.sizes(), ", got ", table.sizes());
  return table.to(at::kFloat).contiguous();
}

Angles angles_of(const OptionalTensor& cos, const OptionalTensor& sin, bool interleaved, const Tensor& x) {
  TORCH_CHECK_VALUE(cos.has_value() == sin.has_value(), "cos and sin go together");
  if (!cos.has_value()) return {};
  TORCH_CHECK_VALUE(
      cos->sizes() == sin->sizes(), "cos and sin must have one shape, got ", cos->sizes(), " and ", sin->sizes());
  Angles angles{angle_table("cos", *cos, x), angle_table("sin", *sin, x), cos->size(1), interleaved ? kInterleaved : kHalves};
  TORCH_CHECK_VALUE(
      angles.half > 0 && x.size(2) % (2 * angles.half) == 0,
      "x's width ", x.size(2), " is no multiple of the head dim ", 2 * angles.half, " (twice the width of cos)");
  return angles;
}

std::unique_ptr<float[]> scratch_for(const Tensor& x) { return std::unique_ptr<float[]>(new float[kScratchRows * x.size(2)]); }

std::tuple<Tensor, Tensor> rms_norm_rope_fwd(
    const Tensor& x, const Tensor& weight, const OptionalTensor& cos, const OptionalTensor& sin, double eps, bool interleaved) {
  check_activations("x", x);
  const Tensor rows = with_rows(x), factor = vector_of("weight", weight, x, false);
  const Angles angles = angles_of(cos, sin, interleaved, x);
  Tensor out = empty_like_rows(x), rstd = empty_statistics(x);
  const RmsNormForward args{
      view(rows), floats(factor), floats(angles.cos), floats(angles.sin), x.size(1), x.size(2), angles.half,
      static_cast<float>(eps), out.mutable_data_ptr(), rstd.mutable_data_ptr<float>()};
  const auto kernel = kernels().rms_norm_fwd[type_of(x)][angles.rotation];
  parallel_rows(x, [&](int64_t begin, int64_t end) { kernel(args, begin, end, scratch_for(x).get()); });
  return {out, rstd};
}

std::tuple<Tensor, Tensor> rms_norm_rope_bwd(
    const Tensor& grad, const Tensor& x, const Tensor& weight, const OptionalTensor& cos, const OptionalTensor& sin,
    const Tensor& rstd, bool interleaved) {
  check_activations("x", x);
  check_like("grad", grad, "x", x);
  const Tensor rows = with_rows(x), grad_rows = with_rows(grad), factor = vector_of("weight", weight, x, false);
  const Angles angles = angles_of(cos, sin, interleaved, x);
  const Tensor statistics = rstd.contiguous();
  Tensor grad_x = empty_like_rows(x);
  const RmsNormBackward args{
      view(grad_rows), view(rows), floats(factor), floats(angles.cos), floats(angles.sin), floats(statistics), x.size(1),
      x.size(2), angles.half, grad_x.mutable_data_ptr()};
  const auto kernel = kernels().rms_norm_bwd[type_of(x)][angles.rotation];
  const ChunkedSums chunks(x, 1);
  chunks.run([&](int64_t begin, int64_t end, const ParameterSums& sums) {
    kernel(args, begin, end, scratch_for(x).get(), sums);
  });
  return {grad_x, chunks.total(0, weight)};
}

// What scale stands for, as the factor of the normalised row.
Tensor factor_of(const Tensor& scale, const Tensor& x) {
  if (scale.dim() == 2) return vector_of("scale", scale, x, true).add(1);
  return vector_of("weight", scale, x, false);
}

struct NormInputs {
  Tensor factor, offset;
  int64_t stride;

  NormInputs(const Tensor& scale, const Tensor& shift, const Tensor& x)
      : factor(factor_of(scale, x)),
        offset(vector_of(scale.dim() == 2 ? "shift" : "bias", shift, x, scale.dim() == 2)),
        stride(scale.dim() == 2 ? x.size(2) : 0) {}
};

std::tuple<Tensor, Tensor, Tensor> layer_norm_fwd(const Tensor& x, const Tensor& scale, const Tensor& shift, double eps) {
  check_activations("x", x);
  const Tensor rows = with_rows(x);
  const NormInputs norm(scale, shift, x);
  Tensor out = empty_like_rows(x), mean = empty_statistics(x), rstd = empty_statistics(x);
  const LayerNormForward args{
      view(rows), {}, nullptr, floats(norm.factor), floats(norm.offset), norm.stride, x.size(1), x.size(2),
      static_cast<float>(eps), nullptr, out.mutable_data_ptr(), mean.mutable_data_ptr<float>(), rstd.mutable_data_ptr<float>()};
  const auto kernel = kernels().layer_norm_fwd[type_of(x)][kNoResidual];
  parallel_rows(x, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return {out, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_bwd(
    const Tensor& grad, const Tensor& x, const Tensor& scale, const Tensor& mean, const Tensor& rstd) {
  check_activations("x", x);
  check_like("grad", grad, "x", x);
  const Tensor rows = with_rows(x), grad_rows = with_rows(grad), factor = factor_of(scale, x);
  const Tensor means = mean.contiguous(), rstds = rstd.contiguous();
  Tensor grad_x = empty_like_rows(x);
  const LayerNormBackward args{
      view(grad_rows), {}, view(rows), {}, nullptr, floats(factor), floats(means), floats(rstds),
      scale.dim() == 2 ? x.size(2) : 0, x.size(1), x.size(2), grad_x.mutable_data_ptr(), nullptr};
  const auto kernel = kernels().layer_norm_bwd[type_of(x)][kNoResidual];
  const ChunkedSums chunks(x, 2);
  chunks.run([&](int64_t begin, int64_t end, const ParameterSums& sums) { kernel(args, begin, end, sums); });
  return {grad_x, chunks.total(0, scale), chunks.total(1, scale)};
}

Tensor gate_of(const OptionalTensor& gate, const Tensor& x) {
  return gate.has_value() ? vector_of("gate", *gate, x, true) : Tensor();
}

Tensor gate_residual_fwd(const Tensor& x, const Tensor& y, const OptionalTensor& gate) {
  check_activations("x", x);
  check_like("y", y, "x", x);
  const Tensor x_rows = with_rows(x), y_rows = with_rows(y), gates = gate_of(gate, x);
  Tensor out = empty_like_rows(x);
  const GateResidualForward args{view(x_rows), view(y_rows), floats(gates), x.size(1), x.size(2), out.mutable_data_ptr()};
  const auto kernel = kernels().gate_residual_fwd[type_of(x)][gate.has_value()];
  parallel_rows(x, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return out;
}

std::tuple<Tensor, Tensor> gate_residual_bwd(const Tensor& grad, const Tensor& y, const Tensor& gate) {
  check_activations("y", y);
  check_like("grad", grad, "y", y);
  const Tensor grad_rows = with_rows(grad), y_rows = with_rows(y), gates = vector_of("gate", gate, y, true);
  Tensor grad_y = empty_like_rows(y);
  const GateResidualBackward args{
      view(grad_rows), view(y_rows), floats(gates), y.size(1), y.size(2), grad_y.mutable_data_ptr()};
  const auto kernel = kernels().gate_residual_bwd[type_of(y)];
  const ChunkedSums chunks(y, 3);
  chunks.run([&](int64_t begin, int64_t end, const ParameterSums& sums) { kernel(args, begin, end, sums); });
  return {grad_y, chunks.total(2, gate)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gate_residual_norm_fwd(
    const Tensor& x, const Tensor& y, const OptionalTensor& gate, const Tensor& scale, const Tensor& shift, double eps) {
  check_activations("x", x);
  check_like("y", y, "x", x);
  const Tensor x_rows = with_rows(x), y_rows = with_rows(y), gates = gate_of(gate, x);
  const NormInputs norm(scale, shift, x);
  Tensor residual = empty_like_rows(x), out = empty_like_rows(x), mean = empty_statistics(x), rstd = empty_statistics(x);
  const LayerNormForward args{
      view(x_rows), view(y_rows), floats(gates), floats(norm.factor), floats(norm.offset), norm.stride, x.size(1), x.size(2),
      static_cast<float>(eps), residual.mutable_data_ptr(), out.mutable_data_ptr(), mean.mutable_data_ptr<float>(),
      rstd.mutable_data_ptr<float>()};
  const auto kernel = kernels().layer_norm_fwd[type_of(x)][gate.has_value() ? kGatedResidual : kPlainResidual];
  parallel_rows(x, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return {residual, out, mean, rstd};
}

// [grad of x, of scale, of shift] and, with a gate, [of y, of gate]; without one y's gradient is x's.
std::vector<Tensor> gate_residual_norm_bwd(
    const Tensor& grad_residual, const Tensor& grad, const Tensor& residual, const OptionalTensor& y, const OptionalTensor& gate,
    const Tensor& scale, const Tensor& mean, const Tensor& rstd) {
  check_activations("residual", residual);
  check_like("grad", grad, "residual", residual);
  check_like("grad_residual", grad_residual, "residual", residual);
  TORCH_CHECK_VALUE(gate.has_value() == y.has_value(), "y and gate go together");
  const bool gated = gate.has_value();
  if (gated) check_like("y", *y, "residual", residual);
  const Tensor rows = with_rows(residual), grad_rows = with_rows(grad), residual_rows = with_rows(grad_residual);
  const Tensor y_rows = gated ? with_rows(*y) : Tensor(), gates = gate_of(gate, residual);
  const Tensor factor = factor_of(scale, residual), means = mean.contiguous(), rstds = rstd.contiguous();
  Tensor grad_x = empty_like_rows(residual), grad_y = gated ? empty_like_rows(residual) : Tensor();
  const LayerNormBackward args{
      view(grad_rows), view(residual_rows), view(rows), gated ? view(y_rows) : Rows{}, floats(gates), floats(factor),
      floats(means), floats(rstds), scale.dim() == 2 ? residual.size(2) : 0, residual.size(1), residual.size(2),
      grad_x.mutable_data_ptr(), gated ? grad_y.mutable_data_ptr() : nullptr};
  const auto kernel = kernels().layer_norm_bwd[type_of(residual)][gated ? kGatedResidual : kPlainResidual];
  const ChunkedSums chunks(residual, gated ? 3 : 2);
  chunks.run([&](int64_t begin, int64_t end, const ParameterSums& sums) { kernel(args, begin, end, sums); });
  std::vector<Tensor> grads{grad_x, chunks.total(0, scale), chunks.total(1, scale)};
  if (gated) grads.insert(grads.end(), {grad_y, chunks.total(2, *gate)});
  return grads;
}

Tensor bias_gelu_fwd(const Tensor& x, const Tensor& bias) {
  check_activations("x", x);
  const Tensor rows = with_rows(x), offset = vector_of("bias", bias, x, false);
  Tensor out = empty_like_rows(x);
  const BiasGeluForward args{view(rows), floats(offset), x.size(1), x.size(2), out.mutable_data_ptr()};
  const auto kernel = kernels().bias_gelu_fwd[type_of(x)];
  parallel_rows(x, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return out;
}

std::tuple<Tensor, Tensor> bias_gelu_bwd(const Tensor& grad, const Tensor& x, const Tensor& bias) {
  check_activations("x", x);
  check_like("grad", grad, "x", x);
  const Tensor rows = with_rows(x), grad_rows = with_rows(grad), offset = vector_of("bias", bias, x, false);
  Tensor grad_x = empty_like_rows(x);
  const BiasGeluBackward args{
      view(grad_rows), view(rows), floats(offset), x.size(1), x.size(2), grad_x.mutable_data_ptr()};
  const auto kernel = kernels().bias_gelu_bwd[type_of(x)];
  const ChunkedSums chunks(x, 2);
  chunks.run([&](int64_t begin, int64_t end, const ParameterSums& sums) { kernel(args, begin, end, sums); });
  return {grad_x, chunks.total(1, bias)};
}

}  // namespace
}  // namespace mova::cpu

TORCH_LIBRARY_FRAGMENT(mova_kernels, library) {
  library.def("cpu_isas() -> str[]", &mova::cpu::isas);
  library.def("cpu_isa() -> str", &mova::cpu::isa);
  library.def("use_cpu_isa(str name) -> ()", &mova::cpu::use_isa);
  library.def("cpu_threaded() -> bool", &mova::cpu::threaded);
  library.def(
      "rms_norm_rope_fwd(Tensor x, Tensor weight, Tensor? cos, Tensor? sin, float eps, bool interleaved)"
      " -> (Tensor out, Tensor rstd)");
  library.def(
      "rms_norm_rope_bwd(Tensor grad, Tensor x, Tensor weight, Tensor? cos, Tensor? sin, Tensor rstd, bool interleaved)"
      " -> (Tensor grad_x, Tensor grad_weight)");
  library.def("layer_norm_fwd(Tensor x, Tensor scale, Tensor shift, float eps) -> (Tensor out, Tensor mean, Tensor rstd)");
  library.def(
      "layer_norm_bwd(Tensor grad, Tensor x, Tensor scale, Tensor mean, Tensor rstd)"
      " -> (Tensor grad_x, Tensor grad_scale, Tensor grad_shift)");
  library.def("gate_residual_fwd(Tensor x, Tensor y, Tensor? gate) -> Tensor");
  library.def("gate_residual_bwd(Tensor grad, Tensor y, Tensor gate) -> (Tensor grad_y, Tensor grad_gate)");
  library.def(
      "gate_residual_norm_fwd(Tensor x, Tensor y, Tensor? gate, Tensor scale, Tensor shift, float eps)"
      " -> (Tensor residual, Tensor out, Tensor mean, Tensor rstd)");
  library.def(
      "gate_residual_norm_bwd(Tensor grad_residual, Tensor grad, Tensor residual, Tensor? y, Tensor? gate, Tensor scale,"
      " Tensor mean, Tensor rstd) -> Tensor[]");
  library.def("bias_gelu_fwd(Tensor x, Tensor bias) -> Tensor");
  library.def("bias_gelu_bwd(Tensor grad, Tensor x, Tensor bias) -> (Tensor grad_x, Tensor grad_bias)");
}

TORCH_LIBRARY_IMPL(mova_kernels, CPU, library) {
  library.impl("rms_norm_rope_fwd", &mova::cpu::rms_norm_rope_fwd);
  library.impl("rms_norm_rope_bwd", &mova::cpu::rms_norm_rope_bwd);
  library.impl("layer_norm_fwd", &mova::cpu::layer_norm_fwd);
  library.impl("layer_norm_bwd", &mova::cpu::layer_norm_bwd);
  library.impl("gate_residual_fwd", &mova::cpu::gate_residual_fwd);
  library.impl("gate_residual_bwd", &mova::cpu::gate_residual_bwd);
  library.impl("gate_residual_norm_fwd", &mova::cpu::gate_residual_norm_fwd);
  library.impl("gate_residual_norm_bwd", &mova::cpu::gate_residual_norm_bwd);
  library.impl("bias_gelu_fwd", &mova::cpu::bias_gelu_fwd);
  library.impl("bias_gelu_bwd", &mova::cpu::bias_gelu_bwd);
}
