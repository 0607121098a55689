// gelu(x + bias) with the tanh approximation, and its gradients; the sum is formed again in the backward.
#pragma once

#include "vector.h"

namespace mova::cpu::MOVA_ISA {

inline Vec splat(float value) { return Vec{} + value; }
// NaN stays: it compares as neither smaller nor larger.
inline Vec clamp(Vec v, float low, float high) {
  v = v < splat(low) ? splat(low) : v;
  return v > splat(high) ? splat(high) : v;
}

// e^v to a unit in the last place, for v in [-87, 87]. e^v = 2^n e^r with |r| <= ln(2)/2, where eight terms of e^r's series suffice.
inline Vec exponential(Vec v) {
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which then stands in the lowest bits
  const Vec shifted = v * 1.44269504f + magic, n = shifted - magic;
  const Vec r = (v - n * 0.693359375f) + n * 2.12194440e-4f;  // ln(2) in two parts, the first of few digits
  Vec series = splat(1.0f / 5040);
  constexpr float factors[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  for (const float factor : factors) series = series * r + factor;
  return (Vec)((Bits)series + ((Bits)shifted << 23));
}

// gelu(v) = v * share, share = sigmoid(2u), u = sqrt(2/pi) (v + 0.044715 v^3).
struct Gelu {
  Vec share, slope;  // slope: the derivative of 2u by v

  explicit Gelu(Vec v) {
    constexpr float twice_root = 1.5957691216f, cubic = 0.044715f;
    const Vec c = clamp(v, -16, 16);  // beyond, the share is 0 or 1 to the last bit
    const Vec square = c * c;
    share = 1.0f / (1.0f + exponential(clamp(-twice_root * c * (1.0f + cubic * square), -87, 87)));
    slope = twice_root * (1.0f + 3 * cubic * square);
  }
  Vec derivative(Vec v) const { return share + clamp(v, -16, 16) * share * (1.0f - share) * slope; }
};

template <class T>
void bias_gelu_fwd_kernel(const BiasGeluForward& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const T* x = row<T>(a.x, i / a.seq, i % a.seq);
    T* out = (T*)a.out + i * a.dim;
    each(a.dim, [&](int64_t j, auto n) {
      const Vec v = load(x + j, n) + load(a.bias + j, n);
      store(out + j, v * Gelu(v).share, n);
    });
  }
}

template <class T>
void bias_gelu_bwd_kernel(const BiasGeluBackward& a, int64_t begin, int64_t end, const ParameterSums& sums) {
  set_zero(sums.offset, a.dim);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / a.seq, s = i % a.seq;
    const T *grad = row<T>(a.grad, b, s), *x = row<T>(a.x, b, s);
    T* grad_x = (T*)a.grad_x + i * a.dim;
    each(a.dim, [&](int64_t j, auto n) {
      const Vec v = load(x + j, n) + load(a.bias + j, n);
      const Vec g = load(grad + j, n) * Gelu(v).derivative(v);
      store(grad_x + j, g, n);
      add(sums.offset + j, g, n);
    });
  }
}

}  // namespace mova::cpu::MOVA_ISA
