// The residual x + gate * y, or x + y without a gate, and the gradients of y and gate; x's is the output's own.
#pragma once

#include "vector.h"

namespace mova::cpu::MOVA_ISA {

template <class T, bool gated>
void gate_residual_fwd_kernel(const GateResidualForward& a, int64_t begin, int64_t end) {
  const bool stream = streamed((T*)a.out, a.dim, a.seq * a.dim);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / a.seq, s = i % a.seq;
    const T *x = row<T>(a.x, b, s), *y = row<T>(a.y, b, s);
    [[maybe_unused]] const float* gate = gated ? a.gate + b * a.dim : nullptr;
    T* out = (T*)a.out + i * a.dim;
    each(a.dim, [&](int64_t j, auto n) {
      Vec update = load(y + j, n);
      if constexpr (gated) update *= load(gate + j, n);
      store(out + j, load(x + j, n) + update, n, stream);
    });
  }
  finish_streams(stream);
}

template <class T>
void gate_residual_bwd_kernel(const GateResidualBackward& a, int64_t begin, int64_t end, const ParameterSums& sums) {
  float* grad_gate = sums.gate;
  const bool stream = streamed((T*)a.grad_y, a.dim, a.seq * a.dim);
  set_zero(grad_gate, a.dim);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / a.seq, s = i % a.seq;
    const T *grad = row<T>(a.grad, b, s), *y = row<T>(a.y, b, s);
    const float* gate = a.gate + b * a.dim;
    T* grad_y = (T*)a.grad_y + i * a.dim;
    each(a.dim, [&](int64_t j, auto n) {
      const Vec g = load(grad + j, n);
      store(grad_y + j, g * load(gate + j, n), n, stream);
      add(grad_gate + j, g * load(y + j, n), n);
    });
  }
  finish_streams(stream);
}

}  // namespace mova::cpu::MOVA_ISA
