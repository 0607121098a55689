// Weights of 4-bit codes as numbers: a block has only 16 different ones, which are computed once and then looked up in registers.
// And numbers as codes: by comparison with each bound between two of the 16 values.
#pragma once

#include "vector.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace mova::cpu::MOVA_ISA {

// The 16 numbers of a block, as they are stored.
template <class T>
struct Nf4Table {
  alignas(64) T of[16];

  Nf4Table(const float* values, float scale) {
    for (int j = 0; j < 16; j += W) store(of + j, load(values + j, Full{}) * scale, Full{});
  }
};

template <class T>
inline void look_up(const Nf4Table<T>& table, const uint8_t* codes, T* out) {
  for (int j = 0; j < kNf4Block / 2; ++j) {
    out[2 * j] = table.of[codes[j] >> 4];
    out[2 * j + 1] = table.of[codes[j] & 15];
  }
}

#if defined(__AVX2__)
// 32 codes in the order of their columns, a byte each.
struct Nf4Codes {
  __m128i of[2];

  explicit Nf4Codes(const uint8_t* codes) {
    const __m128i packed = _mm_loadu_si128((const __m128i*)codes), half = _mm_set1_epi8(15);
    const __m128i even = _mm_and_si128(_mm_srli_epi16(packed, 4), half), odd = _mm_and_si128(packed, half);
    of[0] = _mm_unpacklo_epi8(even, odd);
    of[1] = _mm_unpackhi_epi8(even, odd);
  }
};

// The bytes of 16 numbers are two tables of 16 bytes, for which there is a look-up instruction.
template <>
inline void look_up<BFloat16>(const Nf4Table<BFloat16>& table, const uint8_t* codes, BFloat16* out) {
  const __m128i *numbers = (const __m128i*)table.of, mask = _mm_set1_epi16(255);
  const __m128i a = _mm_load_si128(numbers), b = _mm_load_si128(numbers + 1);
  const __m128i low = _mm_packus_epi16(_mm_and_si128(a, mask), _mm_and_si128(b, mask));
  const __m128i high = _mm_packus_epi16(_mm_srli_epi16(a, 8), _mm_srli_epi16(b, 8));
  __m128i* to = (__m128i*)out;
  for (int j = 0; j < kNf4Block / 2; j += 16) {
    const Nf4Codes indices(codes + j);
    for (const __m128i index : indices.of) {
      const __m128i lows = _mm_shuffle_epi8(low, index), highs = _mm_shuffle_epi8(high, index);
      _mm_storeu_si128(to++, _mm_unpacklo_epi8(lows, highs));
      _mm_storeu_si128(to++, _mm_unpackhi_epi8(lows, highs));
    }
  }
}

// The numbers are one register, or two.
template <>
inline void look_up<float>(const Nf4Table<float>& table, const uint8_t* codes, float* out) {
#if defined(__AVX512F__)
  const __m512 numbers = _mm512_load_ps(table.of);
#else
  const __m256 low = _mm256_load_ps(table.of), high = _mm256_load_ps(table.of + 8);
#endif
  for (int j = 0; j < kNf4Block / 2; j += 16) {
    const Nf4Codes indices(codes + j);
    for (const __m128i index : indices.of) {
#if defined(__AVX512F__)
      _mm512_storeu_ps(out, _mm512_maskz_permutexvar_ps(0xffff, _mm512_maskz_cvtepu8_epi32(0xffff, index), numbers));
#else
      for (int half = 0; half < 16; half += 8) {
        const __m256i at = _mm256_cvtepu8_epi32(half == 0 ? index : _mm_srli_si128(index, 8));
        const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(at, 28));  // bit 3 of the code becomes the sign that chooses
        const __m256 either = _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, at), _mm256_permutevar8x32_ps(high, at), upper);
        _mm256_storeu_ps(out + half, either);
      }
#endif
      out += 16;
    }
  }
}
#endif

// The scales of a row. In two passes, so that no fused multiplication and addition rounds otherwise than PyTorch's two.
inline const float* scales_of(const DequantiseNf4& a, int64_t row, float* scratch) {
  const int64_t first = row * a.blocks;
  if (a.scales != nullptr) return a.scales + first;
  for (int64_t j = 0; j < a.blocks; ++j) {
    scratch[j] = a.scale_values[a.scale_codes[first + j]] * a.nested[(first + j) / kNf4NestedBlock];
  }
  for (int64_t j = 0; j < a.blocks; ++j) scratch[j] += a.offset;
  return scratch;
}

template <class T>
void dequantise_nf4_kernel(const DequantiseNf4& a, int64_t begin, int64_t end, float* scratch) {
  for (int64_t i = begin; i < end; ++i) {
    const float* scales = scales_of(a, i, scratch);
    for (int64_t j = 0; j < a.blocks; ++j) {
      const int64_t block = i * a.blocks + j;
      look_up(Nf4Table<T>(a.values, scales[j]), a.codes + block * (kNf4Block / 2), (T*)a.out + block * kNf4Block);
    }
  }
}

typedef int32_t Ints __attribute__((vector_size(4 * W)));
// A byte for each pair of lanes.
typedef uint8_t PairBytes __attribute__((vector_size(W / 2)));

// Magnitudes are compared as whole numbers, among which NaN is the largest: a block that has one gets it as its scale.
inline float largest(const Vec* numbers) {
  Ints most{};
  for (int k = 0; k < kNf4Block / W; ++k) {
    const Ints bits = (Ints)((Bits)numbers[k] & 0x7fffffff);
    most = bits > most ? bits : most;
  }
  int32_t found = 0;
  for (int lane = 0; lane < W; ++lane) found = most[lane] > found ? most[lane] : found;
  float value;
  __builtin_memcpy(&value, &found, sizeof(value));
  return value;
}

template <class T>
void quantise_nf4_kernel(const QuantiseNf4& a, int64_t begin, int64_t end) {
  Vec bounds[kNf4Bounds];
  for (int k = 0; k < kNf4Bounds; ++k) bounds[k] = Vec{} + a.bounds[k];
  for (int64_t i = begin; i < end; ++i) {
    const T* from = (const T*)a.weight + i * a.row_stride;
    for (int64_t block = i * a.blocks; block < (i + 1) * a.blocks; ++block, from += kNf4Block) {
      Vec numbers[kNf4Block / W];
      for (int k = 0; k < kNf4Block / W; ++k) numbers[k] = load(from + k * W, Full{});
      const float scale = largest(numbers), inverse = 1.0f / (scale < a.least ? a.least : scale);
      a.absmax[block] = scale;
      uint8_t* to = a.codes + block * (kNf4Block / 2);
      for (int k = 0; k < kNf4Block / W; ++k, to += W / 2) {
        const Vec scaled = numbers[k] * inverse;
        Ints codes = Ints{} + kNf4Bounds;
        for (const Vec bound : bounds) codes += scaled <= bound;  // -1 where it holds
        const PairBits pairs = (PairBits)codes;  // the even lane in the low half, as on every CPU of this library
        store_lanes(to, __builtin_convertvector((pairs << 4 | pairs >> 32) & 255, PairBytes), Full{});
      }
    }
  }
}

}  // namespace mova::cpu::MOVA_ISA
