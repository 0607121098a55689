// Vectors of floats as wide as the registers of the instruction set that this is compiled for, by the vector extensions that GCC
// and Clang share. MOVA_ISA names the set and the namespace, so that the copies never meet.
#pragma once

#include <cstdint>

#if defined(__AVX512F__)
#include <immintrin.h>  // always inlined: no copy of these for the linker to choose from
#endif

#include "kernels.h"

namespace mova::cpu::MOVA_ISA {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;  // SSE2, NEON, or what the compiler makes of it
#endif

typedef float Vec __attribute__((vector_size(4 * W)));
typedef uint32_t Bits __attribute__((vector_size(4 * W)));
typedef uint64_t PairBits __attribute__((vector_size(4 * W)));
typedef uint16_t ShortBits __attribute__((vector_size(2 * W)));

struct BFloat16 {
  uint16_t bits;
};

// How many lanes an access touches: all, or the first few at the end of a row. The others read as zero.
struct Full {};
struct Part {
  int64_t lanes;
};

template <class V, class E>
inline V load_lanes(const E* from, Full) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}
template <class V, class E>
inline V load_lanes(const E* from, Part n) {
  V v{};
  __builtin_memcpy(&v, from, n.lanes * sizeof(E));
  return v;
}
template <class V, class E>
inline void store_lanes(E* to, V v, Full) {
  __builtin_memcpy(to, &v, sizeof(V));
}
template <class V, class E>
inline void store_lanes(E* to, V v, Part n) {
  __builtin_memcpy(to, &v, n.lanes * sizeof(E));
}

inline Vec widen(ShortBits bits) { return (Vec)(__builtin_convertvector(bits, Bits) << 16); }

// To the nearest bfloat16, ties to even. NaN apart: the carry could turn one into a number. The instruction for it, a fifth of the
// time of a kernel, differs in numbers below 1.2e-38 alone, which become zero.
inline ShortBits narrow(Vec v) {
#if defined(__AVX512BF16__)
  return (ShortBits)_mm512_cvtneps_pbh((__m512)v);
#else
  const Bits bits = (Bits)v, nan = (Bits)(v != v);
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), ShortBits);
#endif
}

template <class N>
inline Vec load(const float* from, N n) {
  return load_lanes<Vec>(from, n);
}
template <class N>
inline Vec load(const BFloat16* from, N n) {
  return widen(load_lanes<ShortBits>(from, n));
}
template <class N>
inline void store(float* to, Vec v, N n) {
  store_lanes(to, v, n);
}
template <class N>
inline void store(BFloat16* to, Vec v, N n) {
  store_lanes(to, narrow(v), n);
}

// As it reads once it is stored as a T.
template <class T>
inline Vec rounded(Vec v);
template <>
inline Vec rounded<float>(Vec v) {
  return v;
}
template <>
inline Vec rounded<BFloat16>(Vec v) {
  return widen(narrow(v));
}

// Whether `elements` at `to` are written past the caches: where what is written is more than they keep, a line need not be read
// before it is overwritten. They are written in runs of `run`, which must be whole, aligned vectors. In bfloat16 the arithmetic,
// not memory, sets the pace.
inline bool streamed([[maybe_unused]] const float* to, [[maybe_unused]] int64_t run, [[maybe_unused]] int64_t elements) {
#if defined(__AVX512F__)
  return elements >= 1 << 19 && run % W == 0 && (uintptr_t)to % sizeof(Vec) == 0;
#else
  return false;
#endif
}
inline bool streamed(const BFloat16*, int64_t, int64_t) { return false; }

template <class T, class N>
inline void store(T* to, Vec v, N n, [[maybe_unused]] bool stream) {
#if defined(__AVX512F__)
  if (stream) return _mm512_stream_ps((float*)to, (__m512)v);
#endif
  store(to, v, n);
}
// After streamed stores, before another thread may look.
inline void finish_streams([[maybe_unused]] bool stream) {
#if defined(__AVX512F__)
  if (stream) _mm_sfence();
#endif
}

// The lanes that count; zero in the others.
inline Vec kept(Vec v, Full) { return v; }
inline Vec kept(Vec v, Part n) { return load_lanes<Vec>((const float*)&v, n); }

// Lanes 2i and 2i+1 change places.
inline Vec swap_pairs(Vec v) {
  const PairBits pairs = (PairBits)v;
  return (Vec)((pairs << 32) | (pairs >> 32));
}

// A tree of additions: in a fixed order, and short for one sum or two in every row.
template <int N>
inline float sum_lanes(const float* lanes) {
  if constexpr (N == 1) {
    return lanes[0];
  } else {
    return sum_lanes<N / 2>(lanes) + sum_lanes<N / 2>(lanes + N / 2);
  }
}
inline float sum(Vec v) {
  float lanes[W];
  __builtin_memcpy(lanes, &v, sizeof(v));
  return sum_lanes<W>(lanes);
}

// Call body(first index, Full or Part) over n elements.
template <class Body>
inline __attribute__((always_inline)) void each(int64_t n, Body body) {
  int64_t j = 0;
  for (; j + W <= n; j += W) body(j, Full{});
  if (j < n) body(j, Part{n - j});
}

// Sums over n elements, to which body(first index, Full or Part, sums) adds. Additions to one register wait for each other: four
// sets of them take turns.
template <int N>
struct Sums {
  float of[N];
};
template <int N, class Body>
inline __attribute__((always_inline)) Sums<N> sum_each(int64_t n, Body body) {
  constexpr int turns = 4;
  Vec sets[turns][N] = {};
  int64_t j = 0;
  for (; j + turns * W <= n; j += turns * W) {
    body(j, Full{}, sets[0]);
    body(j + W, Full{}, sets[1]);
    body(j + 2 * W, Full{}, sets[2]);
    body(j + 3 * W, Full{}, sets[3]);
  }
  for (; j + W <= n; j += W) body(j, Full{}, sets[0]);
  if (j < n) body(j, Part{n - j}, sets[0]);
  Sums<N> sums;
  for (int k = 0; k < N; ++k) sums.of[k] = sum((sets[0][k] + sets[1][k]) + (sets[2][k] + sets[3][k]));
  return sums;
}

template <class T>
inline const T* row(const Rows& rows, int64_t b, int64_t s) {
  return (const T*)rows.data + b * rows.batch_stride + s * rows.row_stride;
}

// Ask for memory that is needed soon: while one row is worked on, the next ones come, and those to be written. Into the second
// cache, since rows of equal columns fall on the same few places of the first.
template <class T>
inline void fetch(const T* p) {
  __builtin_prefetch(p, 0, 2);
}

inline void set_zero(float* to, int64_t n) { __builtin_memset(to, 0, n * sizeof(float)); }

template <class N>
inline void add(float* to, Vec v, N n) {
  store(to, load(to, n) + v, n);
}

inline float reciprocal_root(float x) { return 1.0f / __builtin_sqrtf(x); }

}  // namespace mova::cpu::MOVA_ISA
