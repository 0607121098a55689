// RMSNorm over a row, then rotary embedding of each head: rms_norm_rope_reference, and its gradients.
#pragma once

#include "vector.h"

namespace mova::cpu::MOVA_ISA {

// For interleaved pairs a rotation is y * cos + swapped(y) * sin with both repeated and the first sin of a pair negated;
// direction -1 rotates back. Expanded once for each row, used by every head. cos, sin [half] -> [2*half].
inline void expand_angles(const float* cos, const float* sin, int64_t half, float direction, float* cos2, float* sin2) {
  for (int64_t i = 0; i < half; ++i) {
    cos2[2 * i] = cos2[2 * i + 1] = cos[i];
    sin2[2 * i] = -direction * sin[i];
    sin2[2 * i + 1] = direction * sin[i];
  }
}

template <class T, Rotation rotation>
void rms_norm_fwd_kernel(const RmsNormForward& a, int64_t begin, int64_t end, float* scratch) {
  float *cos2 = scratch, *sin2 = scratch + a.dim;
  const float* weight = a.weight;
  const int64_t half = a.half;
  const int64_t run = rotation == kNoRotation ? a.dim : rotation == kInterleaved ? 2 * half : half;
  const bool stream = streamed((T*)a.out, run, a.seq * a.dim);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t s = i % a.seq;
    const T* x = row<T>(a.x, i / a.seq, s);
    T* out = (T*)a.out + i * a.dim;
    const float squares = sum_each<1>(a.dim, [&](int64_t j, auto n, Vec* to) {
                            const Vec v = load(x + j, n);
                            to[0] += v * v;
                            if (!stream) fetch(out + j);
                          }).of[0];
    const float rstd = reciprocal_root(squares / a.dim + a.eps);
    a.rstd[i] = rstd;
    const auto normed = [&](int64_t j, auto n) {
      fetch(x + a.x.row_stride + j);
      return load(x + j, n) * rstd * load(weight + j, n);
    };
    if constexpr (rotation == kNoRotation) {
      each(a.dim, [&](int64_t j, auto n) { store(out + j, normed(j, n), n, stream); });
    } else if constexpr (rotation == kInterleaved) {
      expand_angles(a.cos + s * half, a.sin + s * half, half, 1.0f, cos2, sin2);
      for (int64_t head = 0; head < a.dim; head += 2 * half) {
        each(2 * half, [&](int64_t j, auto n) {
          const Vec v = normed(head + j, n);
          store(out + head + j, v * load(cos2 + j, n) + swap_pairs(v) * load(sin2 + j, n), n, stream);
        });
      }
    } else {
      const float *cos = a.cos + s * half, *sin = a.sin + s * half;
      for (int64_t head = 0; head < a.dim; head += 2 * half) {
        each(half, [&](int64_t j, auto n) {
          const Vec first = normed(head + j, n), second = normed(head + half + j, n);
          const Vec c = load(cos + j, n), d = load(sin + j, n);
          store(out + head + j, first * c - second * d, n, stream);
          store(out + head + half + j, first * d + second * c, n, stream);
        });
      }
    }
  }
  finish_streams(stream);
}

// The gradient of a rotated row, rotated back: the gradient of the normalised row, in float32.
template <class T, Rotation rotation>
inline void rotate_back(const T* grad, const RmsNormBackward& a, int64_t s, float* cos2, float* sin2, float* to) {
  const int64_t half = a.half;
  if constexpr (rotation == kNoRotation) {
    each(a.dim, [&](int64_t j, auto n) { store(to + j, load(grad + j, n), n); });
  } else if constexpr (rotation == kInterleaved) {
    expand_angles(a.cos + s * half, a.sin + s * half, half, -1.0f, cos2, sin2);
    for (int64_t head = 0; head < a.dim; head += 2 * half) {
      each(2 * half, [&](int64_t j, auto n) {
        const Vec g = load(grad + head + j, n);
        store(to + head + j, g * load(cos2 + j, n) + swap_pairs(g) * load(sin2 + j, n), n);
      });
    }
  } else {
    const float *cos = a.cos + s * half, *sin = a.sin + s * half;
    for (int64_t head = 0; head < a.dim; head += 2 * half) {
      each(half, [&](int64_t j, auto n) {
        const Vec first = load(grad + head + j, n), second = load(grad + head + half + j, n);
        const Vec c = load(cos + j, n), d = load(sin + j, n);
        store(to + head + j, first * c + second * d, n);
        store(to + head + half + j, second * c - first * d, n);
      });
    }
  }
}

// With g the gradient of the normalised row: grad_x = rstd * (g * weight - x * rstd^2 * mean(g * weight * x)).
// `count` rows of one sample together: the sums of the weight's gradient are read and written once for all of them.
template <class T, Rotation rotation, int count>
inline void rms_norm_bwd_rows(const RmsNormBackward& a, int64_t first, float* scratch, const ParameterSums& sums) {
  float *cos2 = scratch, *sin2 = scratch + a.dim, *normed_grad = scratch + 2 * a.dim;
  const int64_t b = first / a.seq, s = first % a.seq;
  const float *weight = a.weight, *rstd = a.rstd + first;
  const T *grad = row<T>(a.grad, b, s), *x = row<T>(a.x, b, s);
  T* grad_x = (T*)a.grad_x + first * a.dim;
  const bool stream = streamed((T*)a.grad_x, a.dim, a.seq * a.dim);
  float along_x[count];
  for (int r = 0; r < count; ++r) {
    const T* x_r = x + r * a.x.row_stride;
    float* g = normed_grad + r * a.dim;
    rotate_back<T, rotation>(grad + r * a.grad.row_stride, a, s + r, cos2, sin2, g);
    const float along = sum_each<1>(a.dim, [&](int64_t j, auto n, Vec* to) {
                          to[0] += load(g + j, n) * load(x_r + j, n) * load(weight + j, n);
                          if (!stream) fetch(grad_x + r * a.dim + j);
                        }).of[0];
    along_x[r] = rstd[r] * rstd[r] * rstd[r] * (along / a.dim);
  }
  each(a.dim, [&](int64_t j, auto n) {
    const Vec w = load(weight + j, n);
    Vec sum_weight = load(sums.factor + j, n);
    for (int r = 0; r < count; ++r) {
      fetch(grad + (r + count) * a.grad.row_stride + j);
      fetch(x + (r + count) * a.x.row_stride + j);
      const Vec g = load(normed_grad + r * a.dim + j, n), v = load(x + r * a.x.row_stride + j, n);
      sum_weight += g * v * rstd[r];
      store(grad_x + r * a.dim + j, g * w * rstd[r] - v * along_x[r], n, stream);
    }
    store(sums.factor + j, sum_weight, n);
  });
  finish_streams(stream);
}

template <class T, Rotation rotation>
void rms_norm_bwd_kernel(const RmsNormBackward& a, int64_t begin, int64_t end, float* scratch, const ParameterSums& sums) {
  set_zero(sums.factor, a.dim);
  int64_t i = begin;
  for (; i + kTogether <= end; i += kTogether) rms_norm_bwd_rows<T, rotation, kTogether>(a, i, scratch, sums);
  for (; i < end; ++i) rms_norm_bwd_rows<T, rotation, 1>(a, i, scratch, sums);
}

}  // namespace mova::cpu::MOVA_ISA
