// Arguments of the CPU kernels and the table of their entry points. Plain data only: this header is compiled for every instruction
// set, and an inline function here could reach a CPU that cannot run the copy which the linker happened to keep.
#pragma once

#include <cstdint>

namespace mova::cpu {

enum Type { kFloat32 = 0, kBFloat16 = 1 };
enum Rotation { kNoRotation = 0, kInterleaved = 1, kHalves = 2 };
enum Residual { kNoResidual = 0, kPlainResidual = 1, kGatedResidual = 2 };

// Activations [b, s, d] with adjacent channels; strides in elements. Outputs are contiguous and need no strides.
struct Rows {
  const void* data;
  int64_t batch_stride, row_stride;
};

// out = rotate(x * rstd * weight), rstd = 1 / sqrt(mean(x^2) + eps). weight [d]; cos, sin [s, half]; rstd [b, s].
struct RmsNormForward {
  Rows x;
  const float *weight, *cos, *sin;
  int64_t seq, dim, half;
  float eps;
  void* out;
  float* rstd;
};

struct RmsNormBackward {
  Rows grad, x;
  const float *weight, *cos, *sin, *rstd;
  int64_t seq, dim, half;
  void* grad_x;
};

// r = x + gate * y, rounded to the activations' type; out = (r - mean) * rstd * factor + offset.
// gate [b, d]; factor and offset [b, d] with vector_stride d, or [d] with vector_stride 0; mean, rstd [b, s].
struct LayerNormForward {
  Rows x, y;
  const float *gate, *factor, *offset;
  int64_t vector_stride, seq, dim;
  float eps;
  void *residual, *out;
  float *mean, *rstd;
};

// x is what was normalised: the residual where there is one, whose own gradient is then grad_residual.
struct LayerNormBackward {
  Rows grad, grad_residual, x, y;
  const float *gate, *factor, *mean, *rstd;
  int64_t vector_stride, seq, dim;
  void *grad_x, *grad_y;
};

// out = x + gate * y.
struct GateResidualForward {
  Rows x, y;
  const float* gate;
  int64_t seq, dim;
  void* out;
};

struct GateResidualBackward {
  Rows grad, y;
  const float* gate;
  int64_t seq, dim;
  void* grad_y;
};

// out = gelu(x + bias), bias [d].
struct BiasGeluForward {
  Rows x;
  const float* bias;
  int64_t seq, dim;
  void* out;
};

struct BiasGeluBackward {
  Rows grad, x;
  const float* bias;
  int64_t seq, dim;
  void* grad_x;
};

// out [o, i] of 4-bit codes [o, i / 2], of an even column in the high half: values[code] times the scale of its block of
// kNf4Block columns. scales: float, or codes of scale_values [256] with a factor for each kNf4NestedBlock of them and one offset.
constexpr int kNf4Block = 64, kNf4NestedBlock = 256;
struct DequantiseNf4 {
  const uint8_t* codes;
  const float *values, *scales;
  const uint8_t* scale_codes;
  const float *scale_values, *nested;
  float offset;
  int64_t blocks;  // of a row
  void* out;
};

// The inverse: codes [o, i / 2] of a weight [o, i] with adjacent columns, row_stride in elements, and absmax [o, blocks], the largest
// magnitude of each block. A code is the number of the 15 ascending bounds that are below x * (1 / max(absmax, least)); of NaN 15.
constexpr int kNf4Bounds = 15;
struct QuantiseNf4 {
  const void* weight;
  int64_t row_stride;
  const float* bounds;
  float least;
  int64_t blocks;  // of a row
  float* absmax;
  uint8_t* codes;
};

// Sums over a chunk of rows, [d] each; a kernel sets those of its operator and variant and leaves the others alone.
struct ParameterSums {
  float *factor, *offset, *gate;
};

// Rows that a backward takes together, and the rows of d floats in its scratch.
constexpr int kTogether = 4, kScratchRows = kTogether + 2;

// Entry points by type and variant. A call serves the rows [begin, end) of the b*s rows.
struct KernelTable {
  void (*rms_norm_fwd[2][3])(const RmsNormForward&, int64_t begin, int64_t end, float* scratch);
  void (*rms_norm_bwd[2][3])(const RmsNormBackward&, int64_t begin, int64_t end, float* scratch, const ParameterSums&);
  void (*layer_norm_fwd[2][3])(const LayerNormForward&, int64_t begin, int64_t end);
  void (*layer_norm_bwd[2][3])(const LayerNormBackward&, int64_t begin, int64_t end, const ParameterSums&);
  void (*gate_residual_fwd[2][2])(const GateResidualForward&, int64_t begin, int64_t end);
  void (*gate_residual_bwd[2])(const GateResidualBackward&, int64_t begin, int64_t end, const ParameterSums&);
  void (*bias_gelu_fwd[2])(const BiasGeluForward&, int64_t begin, int64_t end);
  void (*bias_gelu_bwd[2])(const BiasGeluBackward&, int64_t begin, int64_t end, const ParameterSums&);
  // scratch: a float for each block of a row.
  void (*dequantise_nf4[2])(const DequantiseNf4&, int64_t begin, int64_t end, float* scratch);
  void (*quantise_nf4[2])(const QuantiseNf4&, int64_t begin, int64_t end);
};

namespace baseline {
extern const KernelTable table;
}
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}
namespace avx512_bf16 {
extern const KernelTable table;
}

}  // namespace mova::cpu
