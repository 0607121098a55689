// LayerNorm with weight and bias or with a sample's modulation, alone or after a (gated) residual, and its gradients.
#pragma once

#include "vector.h"

namespace mova::cpu::MOVA_ISA {

template <class T, Residual kind>
void layer_norm_fwd_kernel(const LayerNormForward& a, int64_t begin, int64_t end) {
  const bool stream = streamed((T*)a.out, a.dim, a.seq * a.dim);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / a.seq, s = i % a.seq;
    const T *given = row<T>(a.x, b, s), *y = kind == kNoResidual ? nullptr : row<T>(a.y, b, s), *x = given;
    T* out = (T*)a.out + i * a.dim;
    const float *factor = a.factor + b * a.vector_stride, *offset = a.offset + b * a.vector_stride;
    float total;
    if constexpr (kind == kNoResidual) {
      total = sum_each<1>(a.dim, [&](int64_t j, auto n, Vec* to) { to[0] += load(x + j, n); }).of[0];
    } else {
      T* residual = (T*)a.residual + i * a.dim;
      [[maybe_unused]] const float* gate = kind == kGatedResidual ? a.gate + b * a.dim : nullptr;
      total = sum_each<1>(a.dim, [&](int64_t j, auto n, Vec* to) {
                Vec update = load(y + j, n);
                if constexpr (kind == kGatedResidual) update *= load(gate + j, n);
                const Vec added = load(x + j, n) + update;
                store(residual + j, added, n);
                if (!stream) fetch(out + j);
                to[0] += rounded<T>(added);  // what is normalised is the rounded residual, as others read it
              }).of[0];
      x = residual;
    }
    const float mean = total / a.dim;
    const float squares = sum_each<1>(a.dim, [&](int64_t j, auto n, Vec* to) {
                            const Vec centred = kept(load(x + j, n) - mean, n);
                            to[0] += centred * centred;
                          }).of[0];
    const float rstd = reciprocal_root(squares / a.dim + a.eps);
    a.mean[i] = mean;
    a.rstd[i] = rstd;
    each(a.dim, [&](int64_t j, auto n) {
      fetch(given + a.x.row_stride + j);
      if constexpr (kind != kNoResidual) {
        fetch(y + a.y.row_stride + j);
        fetch(x + a.dim + j);
      }
      store(out + j, (load(x + j, n) - mean) * rstd * load(factor + j, n) + load(offset + j, n), n, stream);
    });
  }
  finish_streams(stream);
}

// With v = grad * factor and h the normalised row: rstd * (v - mean(v) - h * mean(v * h)), plus the residual's own gradient.
// `count` rows of one sample together: the sums of the parameters' gradients are read and written once for all of them.
template <class T, Residual kind, int count>
inline void layer_norm_bwd_rows(const LayerNormBackward& a, int64_t first, const ParameterSums& sums) {
  constexpr bool gated = kind == kGatedResidual;
  const int64_t b = first / a.seq, s = first % a.seq;
  const float *factor = a.factor + b * a.vector_stride, *gate = gated ? a.gate + b * a.dim : nullptr;
  const float *mean = a.mean + first, *rstd = a.rstd + first;
  const T *grad = row<T>(a.grad, b, s), *x = row<T>(a.x, b, s);
  const T *grad_residual = kind == kNoResidual ? nullptr : row<T>(a.grad_residual, b, s), *y = gated ? row<T>(a.y, b, s) : nullptr;
  T *grad_x = (T*)a.grad_x + first * a.dim, *grad_y = gated ? (T*)a.grad_y + first * a.dim : nullptr;
  const bool stream = streamed((T*)a.grad_x, a.dim, a.seq * a.dim) && (!gated || streamed((T*)a.grad_y, a.dim, a.seq * a.dim));
  float mean_total[count], mean_along[count];
  for (int r = 0; r < count; ++r) {
    const T *grad_r = grad + r * a.grad.row_stride, *x_r = x + r * a.x.row_stride;
    const auto found = sum_each<2>(a.dim, [&](int64_t j, auto n, Vec* to) {
      const Vec v = load(grad_r + j, n) * load(factor + j, n);
      if (!stream) fetch(grad_x + r * a.dim + j);
      if constexpr (kind != kNoResidual) fetch(grad_residual + r * a.grad_residual.row_stride + j);
      if constexpr (gated) {
        fetch(y + r * a.y.row_stride + j);
        if (!stream) fetch(grad_y + r * a.dim + j);
      }
      to[0] += v;
      to[1] += v * ((load(x_r + j, n) - mean[r]) * rstd[r]);
    });
    mean_total[r] = found.of[0] / a.dim;
    mean_along[r] = found.of[1] / a.dim;
  }
  each(a.dim, [&](int64_t j, auto n) {
    Vec sum_factor = load(sums.factor + j, n), sum_offset = load(sums.offset + j, n), sum_gate{};
    if constexpr (gated) sum_gate = load(sums.gate + j, n);
    for (int r = 0; r < count; ++r) {
      fetch(grad + (r + count) * a.grad.row_stride + j);
      fetch(x + (r + count) * a.x.row_stride + j);
      const Vec g = load(grad + r * a.grad.row_stride + j, n), v = g * load(factor + j, n);
      const Vec normed = (load(x + r * a.x.row_stride + j, n) - mean[r]) * rstd[r];
      sum_factor += g * normed;
      sum_offset += g;
      Vec through = (v - mean_total[r] - normed * mean_along[r]) * rstd[r];
      if constexpr (kind != kNoResidual) through += load(grad_residual + r * a.grad_residual.row_stride + j, n);
      store(grad_x + r * a.dim + j, through, n, stream);
      if constexpr (gated) {
        store(grad_y + r * a.dim + j, through * load(gate + j, n), n, stream);
        sum_gate += through * load(y + r * a.y.row_stride + j, n);
      }
    }
    store(sums.factor + j, sum_factor, n);
    store(sums.offset + j, sum_offset, n);
    if constexpr (gated) store(sums.gate + j, sum_gate, n);
  });
  finish_streams(stream);
}

template <class T, Residual kind>
void layer_norm_bwd_kernel(const LayerNormBackward& a, int64_t begin, int64_t end, const ParameterSums& sums) {
  set_zero(sums.factor, a.dim);
  set_zero(sums.offset, a.dim);
  if constexpr (kind == kGatedResidual) set_zero(sums.gate, a.dim);
  int64_t i = begin;
  for (; i + kTogether <= end; i += kTogether) layer_norm_bwd_rows<T, kind, kTogether>(a, i, sums);
  for (; i < end; ++i) layer_norm_bwd_rows<T, kind, 1>(a, i, sums);
}

}  // namespace mova::cpu::MOVA_ISA
