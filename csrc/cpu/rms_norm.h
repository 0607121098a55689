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
  for (int64_t i = begin; i < end; ++i) {
    const int64_t s = i % a.seq;
    const T* x = row<T>(a.x, i / a.seq, s);
    T* out = (T*)a.out + i * a.dim;
    Vec squares{};
    each(a.dim, [&](int64_t j, auto n) {
      const Vec v = load(x + j, n);
      squares += v * v;
    });
    const float rstd = reciprocal_root(sum(squares) / a.dim + a.eps);
    a.rstd[i] = rstd;
    const auto normed = [&](int64_t j, auto n) { return load(x + j, n) * rstd * load(weight + j, n); };
    if constexpr (rotation == kNoRotation) {
      each(a.dim, [&](int64_t j, auto n) { store(out + j, normed(j, n), n); });
    } else if constexpr (rotation == kInterleaved) {
      expand_angles(a.cos + s * half, a.sin + s * half, half, 1.0f, cos2, sin2);
      for (int64_t head = 0; head < a.dim; head += 2 * half) {
        each(2 * half, [&](int64_t j, auto n) {
          const Vec v = normed(head + j, n);
          store(out + head + j, v * load(cos2 + j, n) + swap_pairs(v) * load(sin2 + j, n), n);
        });
      }
    } else {
      const float *cos = a.cos + s * half, *sin = a.sin + s * half;
      for (int64_t head = 0; head < a.dim; head += 2 * half) {
        each(half, [&](int64_t j, auto n) {
          const Vec first = normed(head + j, n), second = normed(head + half + j, n);
          const Vec c = load(cos + j, n), d = load(sin + j, n);
          store(out + head + j, first * c - second * d, n);
          store(out + head + half + j, first * d + second * c, n);
        });
      }
    }
  }
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
template <class T, Rotation rotation>
void rms_norm_bwd_kernel(
    const RmsNormBackward& a, int64_t begin, int64_t end, float* scratch, const ParameterSums& sums) {
  float *normed_grad = scratch, *cos2 = scratch + a.dim, *sin2 = scratch + 2 * a.dim, *grad_weight = sums.factor;
  const float* weight = a.weight;
  set_zero(grad_weight, a.dim);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / a.seq, s = i % a.seq;
    const T* x = row<T>(a.x, b, s);
    T* grad_x = (T*)a.grad_x + i * a.dim;
    const float rstd = a.rstd[i];
    rotate_back<T, rotation>(row<T>(a.grad, b, s), a, s, cos2, sin2, normed_grad);
    Vec product{};
    each(a.dim, [&](int64_t j, auto n) {
      const Vec by_x = load(normed_grad + j, n) * load(x + j, n);
      product += by_x * load(weight + j, n);
      add(grad_weight + j, by_x * rstd, n);
    });
    const float along_x = rstd * rstd * rstd * (sum(product) / a.dim);
    each(a.dim, [&](int64_t j, auto n) {
      store(grad_x + j, load(normed_grad + j, n) * load(weight + j, n) * rstd - load(x + j, n) * along_x, n);
    });
  }
}

}  // namespace mova::cpu::MOVA_ISA
