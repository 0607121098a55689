// float16 for the host emulation: stored bits, rounded to nearest even.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half half) {
  const int exponent = half.bits >> 10 & 31, mantissa = half.bits & 1023;
  float size = exponent ? std::ldexp(1024.0f + mantissa, exponent - 25) : std::ldexp(float(mantissa), -24);
  if (exponent == 31) size = mantissa ? NAN : INFINITY;
  return half.bits >> 15 ? -size : size;
}

inline __half __float2half_rn(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (std::isnan(value)) return {0x7FFF};
  if (size >= 65520) return {uint16_t(sign | 0x7C00)};
  // In units of the last place; below 2^-14 numbers are as far apart as above it.
  const int exponent = std::max(size > 0 ? std::ilogb(size) : -14, -14);
  const int units = int(std::nearbyint(std::ldexp(size, 10 - exponent)));
  return {uint16_t(sign | (units + ((exponent + 14) << 10)))};
}
