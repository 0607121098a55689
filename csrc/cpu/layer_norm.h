// LayerNorm with weight and bias or with a sample's modulation, alone or after a (gated) residual, and its gradients.
#pragma once

#include "vector.h"

namespace mova::cpu::MOVA_ISA {

template <class T, Residual kind>
void layer_norm_fwd_kernel(const LayerNormForward& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / a.seq, s = i % a.seq;
    const T* x = row<T>(a.x, b, s);
    T* out = (T*)a.out + i * a.dim;
    const float *factor = a.factor + b * a.vector_stride, *offset = a.offset + b * a.vector_stride;
    Vec total{};
    if constexpr (kind == kNoResidual) {
      each(a.dim, [&](int64_t j, auto n) { total += load(x + j, n); });
    } else {
      const T* y = row<T>(a.y, b, s);
      T* residual = (T*)a.residual + i * a.dim;
      [[maybe_unused]] const float* gate = kind == kGatedResidual ? a.gate + b * a.dim : nullptr;
      each(a.dim, [&](int64_t j, auto n) {
        Vec update = load(y + j, n);
        if constexpr (kind == kGatedResidual) update *= load(gate + j, n);
        store(residual + j, load(x + j, n) + update, n);
        total += load(residual + j, n);  // what is normalised is the rounded residual, as others read it
      });
      x = residual;
    }
    const float mean = sum(total) / a.dim;
    Vec squares{};
    each(a.dim, [&](int64_t j, auto n) {
      const Vec centred = kept(load(x + j, n) - mean, n);
      squares += centred * centred;
    });
    const float rstd = reciprocal_root(sum(squares) / a.dim + a.eps);
    a.mean[i] = mean;
    a.rstd[i] = rstd;
    each(a.dim, [&](int64_t j, auto n) {
      store(out + j, (load(x + j, n) - mean) * rstd * load(factor + j, n) + load(offset + j, n), n);
    });
  }
}

// With v = grad * factor and h the normalised row: rstd * (v - mean(v) - h * mean(v * h)), plus the residual's own gradient.
template <class T, Residual kind>
void layer_norm_bwd_kernel(const LayerNormBackward& a, int64_t begin, int64_t end, const ParameterSums& sums) {
  constexpr bool gated = kind == kGatedResidual;
  float *grad_factor = sums.factor, *grad_offset = sums.offset, *grad_gate = sums.gate;
  set_zero(grad_factor, a.dim);
  set_zero(grad_offset, a.dim);
  if constexpr (gated) set_zero(grad_gate, a.dim);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / a.seq, s = i % a.seq;
    const T *grad = row<T>(a.grad, b, s), *x = row<T>(a.x, b, s);
    const float *factor = a.factor + b * a.vector_stride, mean = a.mean[i], rstd = a.rstd[i];
    Vec total{}, along{};
    each(a.dim, [&](int64_t j, auto n) {
      const Vec g = load(grad + j, n), normed = (load(x + j, n) - mean) * rstd, v = g * load(factor + j, n);
      total += v;
      along += v * normed;
      add(grad_factor + j, g * normed, n);
      add(grad_offset + j, g, n);
    });
    const float mean_total = sum(total) / a.dim, mean_along = sum(along) / a.dim;
    T* grad_x = (T*)a.grad_x + i * a.dim;
    const auto through_norm = [&](int64_t j, auto n) {
      const Vec normed = (load(x + j, n) - mean) * rstd, v = load(grad + j, n) * load(factor + j, n);
      return (v - mean_total - normed * mean_along) * rstd;
    };
    if constexpr (kind == kNoResidual) {
      each(a.dim, [&](int64_t j, auto n) { store(grad_x + j, through_norm(j, n), n); });
    } else {
      const T* grad_residual = row<T>(a.grad_residual, b, s);
      [[maybe_unused]] const T* y = gated ? row<T>(a.y, b, s) : nullptr;
      [[maybe_unused]] const float* gate = gated ? a.gate + b * a.dim : nullptr;
      [[maybe_unused]] T* grad_y = gated ? (T*)a.grad_y + i * a.dim : nullptr;
      each(a.dim, [&](int64_t j, auto n) {
        const Vec g = through_norm(j, n) + load(grad_residual + j, n);
        store(grad_x + j, g, n);
        if constexpr (gated) {
          store(grad_y + j, g * load(gate + j, n), n);
          add(grad_gate + j, g * load(y + j, n), n);
        }
      });
    }
  }
}

}  // namespace mova::cpu::MOVA_ISA
