// The gradients of the operators, as torch's autograd calls them. In C++ because a block's chain of norms, rotations and
// gates at a thousand rows takes milliseconds, of which functions of Python would be a tenth.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace mova::cpu {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using MaybeTensor = std::optional<Tensor>;

// Calls an operator below autograd, so that it reaches the device's kernel or the one for tensors without data. Where a
// gradient is itself to be differentiated, the call is left to autograd, which knows to refuse.
template <class Signature>
class Operator {
 public:
  explicit Operator(const char* name)
      : handle_(c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>()) {}

  template <class... Arguments>
  auto forward(Arguments&&... arguments) const {
    at::AutoDispatchBelowADInplaceOrView below;
    return handle_.call(std::forward<Arguments>(arguments)...);
  }

  template <class... Arguments>
  auto backward(Arguments&&... arguments) const {
    if (at::GradMode::is_enabled()) return handle_.call(std::forward<Arguments>(arguments)...);
    return forward(std::forward<Arguments>(arguments)...);
  }

 private:
  c10::TypedOperatorHandle<Signature> handle_;
};

// A gradient that autograd left out is zero.
Tensor or_zeros(const Tensor& grad, const Tensor& like) { return grad.defined() ? grad : at::zeros_like(like); }

MaybeTensor maybe(const Tensor& x) { return x.defined() ? MaybeTensor(x) : std::nullopt; }

struct RmsNormRope : torch::autograd::Function<RmsNormRope> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const MaybeTensor& cos,
                               const MaybeTensor& sin, double eps, bool interleaved) {
    static const Operator<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const MaybeTensor&, const MaybeTensor&,
                                                     double, bool)>
        op("mova_kernels::rms_norm_rope_fwd");
    auto [out, rstd] = op.forward(x, weight, cos, sin, eps, interleaved);
    ctx->save_for_backward({x, weight, cos.value_or(Tensor()), sin.value_or(Tensor()), rstd});
    ctx->saved_data["interleaved"] = interleaved;
    ctx->mark_non_differentiable({rstd});
    return {out, rstd};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const Operator<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const MaybeTensor&,
                                                     const MaybeTensor&, const Tensor&, bool)>
        op("mova_kernels::rms_norm_rope_bwd");
    const auto saved = ctx->get_saved_variables();
    auto [grad_x, grad_weight] = op.backward(grads[0], saved[0], saved[1], maybe(saved[2]), maybe(saved[3]), saved[4],
                                             ctx->saved_data["interleaved"].toBool());
    return {grad_x, grad_weight, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

struct LayerNorm : torch::autograd::Function<LayerNorm> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& scale, const Tensor& shift, double eps) {
    static const Operator<std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, double)> op(
        "mova_kernels::layer_norm_fwd");
    auto [out, mean, rstd] = op.forward(x, scale, shift, eps);
    ctx->save_for_backward({x, scale, mean, rstd});
    ctx->saved_data["shift"] = shift.scalar_type();
    ctx->mark_non_differentiable({mean, rstd});
    return {out, mean, rstd};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const Operator<std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                             const Tensor&)>
        op("mova_kernels::layer_norm_bwd");
    const auto saved = ctx->get_saved_variables();
    auto [grad_x, grad_scale, grad_shift] = op.backward(grads[0], saved[0], saved[1], saved[2], saved[3]);
    return {grad_x, grad_scale, grad_shift.to(ctx->saved_data["shift"].toScalarType()), Tensor()};
  }
};

struct GateResidual : torch::autograd::Function<GateResidual> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& y, const MaybeTensor& gate) {
    static const Operator<Tensor(const Tensor&, const Tensor&, const MaybeTensor&)> op("mova_kernels::gate_residual_fwd");
    if (gate) ctx->save_for_backward({y, *gate});
    return op.forward(x, y, gate);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const Operator<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&)> op(
        "mova_kernels::gate_residual_bwd");
    const auto saved = ctx->get_saved_variables();
    if (saved.empty()) return {grads[0], grads[0], Tensor()};
    auto [grad_y, grad_gate] = op.backward(grads[0], saved[0], saved[1]);
    return {grads[0], grad_y, grad_gate};
  }
};

struct GateResidualNorm : torch::autograd::Function<GateResidualNorm> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& y, const MaybeTensor& gate,
                               const Tensor& scale, const Tensor& shift, double eps) {
    static const Operator<std::tuple<Tensor, Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const MaybeTensor&,
                                                                     const Tensor&, const Tensor&, double)>
        op("mova_kernels::gate_residual_norm_fwd");
    auto [residual, out, mean, rstd] = op.forward(x, y, gate, scale, shift, eps);
    ctx->save_for_backward({residual, gate ? y : Tensor(), gate.value_or(Tensor()), scale, mean, rstd});
    ctx->saved_data["shift"] = shift.scalar_type();
    ctx->mark_non_differentiable({mean, rstd});
    ctx->set_materialize_grads(false);
    return {residual, out, mean, rstd};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const Operator<std::vector<Tensor>(const Tensor&, const Tensor&, const Tensor&, const MaybeTensor&,
                                              const MaybeTensor&, const Tensor&, const Tensor&, const Tensor&)>
        op("mova_kernels::gate_residual_norm_bwd");
    const auto saved = ctx->get_saved_variables();
    const auto found = op.backward(or_zeros(grads[0], saved[0]), or_zeros(grads[1], saved[0]), saved[0], maybe(saved[1]),
                                   maybe(saved[2]), saved[3], saved[4], saved[5]);
    const bool gated = found.size() == 5;
    const Tensor grad_shift = found[2].to(ctx->saved_data["shift"].toScalarType());
    return {found[0], gated ? found[3] : found[0], gated ? found[4] : Tensor(), found[1], grad_shift, Tensor()};
  }
};

struct BiasGelu : torch::autograd::Function<BiasGelu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& bias) {
    static const Operator<Tensor(const Tensor&, const Tensor&)> op("mova_kernels::bias_gelu_fwd");
    ctx->save_for_backward({x, bias});
    return op.forward(x, bias);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const Operator<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&)> op(
        "mova_kernels::bias_gelu_bwd");
    const auto saved = ctx->get_saved_variables();
    auto [grad_x, grad_bias] = op.backward(grads[0], saved[0], saved[1]);
    return {grad_x, grad_bias};
  }
};

std::tuple<Tensor, Tensor> rms_norm_rope(const Tensor& x, const Tensor& weight, const MaybeTensor& cos,
                                         const MaybeTensor& sin, double eps, bool interleaved) {
  const auto out = RmsNormRope::apply(x, weight, cos, sin, eps, interleaved);
  return {out[0], out[1]};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm(const Tensor& x, const Tensor& scale, const Tensor& shift, double eps) {
  const auto out = LayerNorm::apply(x, scale, shift, eps);
  return {out[0], out[1], out[2]};
}

Tensor gate_residual(const Tensor& x, const Tensor& y, const MaybeTensor& gate) { return GateResidual::apply(x, y, gate); }

std::tuple<Tensor, Tensor, Tensor, Tensor> gate_residual_norm(const Tensor& x, const Tensor& y, const MaybeTensor& gate,
                                                              const Tensor& scale, const Tensor& shift, double eps) {
  const auto out = GateResidualNorm::apply(x, y, gate, scale, shift, eps);
  return {out[0], out[1], out[2], out[3]};
}

Tensor bias_gelu(const Tensor& x, const Tensor& bias) { return BiasGelu::apply(x, bias); }

}  // namespace
}  // namespace mova::cpu

TORCH_LIBRARY_IMPL(mova_kernels, Autograd, library) {
  library.impl("rms_norm_rope_fwd", &mova::cpu::rms_norm_rope);
  library.impl("layer_norm_fwd", &mova::cpu::layer_norm);
  library.impl("gate_residual_fwd", &mova::cpu::gate_residual);
  library.impl("gate_residual_norm_fwd", &mova::cpu::gate_residual_norm);
  library.impl("bias_gelu_fwd", &mova::cpu::bias_gelu);
}
