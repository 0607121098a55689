// Adaptive LayerNorm, n * (1 + scale) + shift with n = (x - mean) * rstd (Peebles & Xie, 2023), and its gradients.
#include "common.cuh"

namespace mova::cuda {
namespace {

struct NormModulate {
  Rows x, dout;  // dout in the backward only
  const float *shift, *scale;
  int64_t shift_batch, scale_batch;
  float *mean, *rstd;  // [b, s]: written forward, read backward
  void* result;        // [b, s, d]: out forward, dx backward
  float *dshift, *dscale;  // [b, p, d] with p = gridDim.x, backward only
  int seq, dim;
  float eps;
};

constexpr int kHeld = 2;

template <class T, bool WIDE>
constexpr int kUnit = WIDE ? kBytes / static_cast<int>(sizeof(T)) : 1;

template <class T, int HELD, bool WIDE>
__global__ void __launch_bounds__(kMaxThreads<T, HELD>) norm_modulate_fwd_kernel(NormModulate a) {
  constexpr int N = kUnit<T, WIDE>;
  using Values = Pack<T, N, WIDE>;
  using Floats = Pack<float, N, WIDE>;
  const int64_t row = blockIdx.x, b = row / a.seq;
  const T* x = a.x.at<T>(b, row % a.seq);
  const float *shift = a.shift + b * a.shift_batch, *scale = a.scale + b * a.scale_batch;
  T* out = static_cast<T*>(a.result) + row * a.dim;
  const int units = a.dim / N;

  Values held[HELD > 0 ? HELD : 1];
  if constexpr (HELD > 0) each_unit<HELD>(units, [&](int k, int u) { held[k] = Values::load(x + u * N); });
  const auto values = [&](int k, int u) {
    if constexpr (HELD > 0) return held[k];
    return Values::load(x + u * N);
  };

  float total[1] = {};
  each_unit<HELD>(units, [&](int k, int u) {
    const Values v = values(k, u);
#pragma unroll
    for (int i = 0; i < N; ++i) total[0] += v[i];
  });
  block_sum(total);
  const float mean = total[0] / a.dim;
  // Around the mean, in a second pass: a difference of large sums would lose the variance of rows far from zero.
  float squares[1] = {};
  each_unit<HELD>(units, [&](int k, int u) {
    const Values v = values(k, u);
#pragma unroll
    for (int i = 0; i < N; ++i) squares[0] += (v[i] - mean) * (v[i] - mean);
  });
  block_sum(squares);
  const float rstd = reciprocal_root(squares[0] / a.dim + a.eps);
  if (threadIdx.x == 0) {
    a.mean[row] = mean;
    a.rstd[row] = rstd;
  }
  each_unit<HELD>(units, [&](int k, int u) {
    Values v = values(k, u);
    const Floats factor = Floats::load(scale + u * N), offset = Floats::load(shift + u * N);
#pragma unroll
    for (int i = 0; i < N; ++i) v.set(i, (v[i] - mean) * rstd * (1.0f + factor[i]) + offset[i]);
    v.store(out + u * N);
  });
}

// With g = dout * (1 + scale): dx = rstd * (g - mean(g) - n * mean(g * n)), dscale = sum(dout * n), dshift = sum(dout)
// (Ba et al., 2016). A block has every p-th row of one sample and sums over them in a row of its own of dscale, dshift.
template <class T, int HELD, bool WIDE>
__global__ void __launch_bounds__(kMaxThreads<T, HELD>) norm_modulate_bwd_kernel(NormModulate a) {
  constexpr int N = kUnit<T, WIDE>;
  using Values = Pack<T, N, WIDE>;
  using Floats = Pack<float, N, WIDE>;
  struct Both {
    Values x, dout;
  };
  const int64_t b = blockIdx.y, partial = (b * gridDim.x + blockIdx.x) * a.dim;
  const float* scale = a.scale + b * a.scale_batch;
  float *dshift = a.dshift + partial, *dscale = a.dscale + partial;
  const int units = a.dim / N;
  Floats scale_sums[HELD > 0 ? HELD : 1] = {}, shift_sums[HELD > 0 ? HELD : 1] = {};

  for (int s = blockIdx.x; s < a.seq; s += gridDim.x) {
    const int64_t row = b * a.seq + s;
    const T *x = a.x.at<T>(b, s), *dout = a.dout.at<T>(b, s);
    T* dx = static_cast<T*>(a.result) + row * a.dim;
    const float mean = a.mean[row], rstd = a.rstd[row];

    Both held[HELD > 0 ? HELD : 1];
    const auto load = [&](int u) { return Both{Values::load(x + u * N), Values::load(dout + u * N)}; };
    if constexpr (HELD > 0) each_unit<HELD>(units, [&](int k, int u) { held[k] = load(u); });
    const auto both = [&](int k, int u) {
      if constexpr (HELD > 0) return held[k];
      return load(u);
    };
    float sums[2] = {};  // of g and of g * n
    each_unit<HELD>(units, [&](int k, int u) {
      const auto [v, d] = both(k, u);
      const Floats factor = Floats::load(scale + u * N);
      // A thread's own columns in every row: sums kept in memory need no other thread's.
      if (HELD == 0 && s != static_cast<int>(blockIdx.x)) {
        scale_sums[0] = Floats::load(dscale + u * N);
        shift_sums[0] = Floats::load(dshift + u * N);
      } else if (HELD == 0) {
        scale_sums[0] = shift_sums[0] = {};
      }
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float n = (v[i] - mean) * rstd, g = d[i] * (1.0f + factor[i]);
        sums[0] += g;
        sums[1] += g * n;
        scale_sums[k].value[i] += d[i] * n;
        shift_sums[k].value[i] += d[i];
      }
      if (HELD == 0) {
        scale_sums[0].store(dscale + u * N);
        shift_sums[0].store(dshift + u * N);
      }
    });
    block_sum(sums);
    const float mean_g = sums[0] / a.dim, mean_gn = sums[1] / a.dim;
    each_unit<HELD>(units, [&](int k, int u) {
      auto [v, d] = both(k, u);
      const Floats factor = Floats::load(scale + u * N);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float n = (v[i] - mean) * rstd, g = d[i] * (1.0f + factor[i]);
        v.set(i, rstd * (g - mean_g - n * mean_gn));
      }
      v.store(dx + u * N);
    });
  }
  if constexpr (HELD > 0) {
    each_unit<HELD>(units, [&](int k, int u) {
      scale_sums[k].store(dscale + u * N);
      shift_sums[k].store(dshift + u * N);
    });
  }
}

struct Forward {
  template <class T, int HELD, bool WIDE>
  static auto kernel() {
    return &norm_modulate_fwd_kernel<T, HELD, WIDE>;
  }
};

struct Backward {
  template <class T, int HELD, bool WIDE>
  static auto kernel() {
    return &norm_modulate_bwd_kernel<T, HELD, WIDE>;
  }
};

template <class Pass, class T>
cudaError_t run(const NormModulate& a, dim3 grid, int device, void* stream) {
  const int64_t size = sizeof(T), n = kUnit<T, true>;
  const Rows shift{a.shift, a.shift_batch, 0}, scale{a.scale, a.scale_batch, 0};
  const bool wide = a.dim % n == 0 && aligned(a.x, size) && aligned(a.dout, size) && aligned(shift, sizeof(float)) &&
                    aligned(scale, sizeof(float)) && aligned(a.result) && aligned(a.dshift) && aligned(a.dscale);
  if (!wide) {
    return launch(Pass::template kernel<T, 0, false>(), grid, dim3(threads_looping(a.dim)), device, stream, a);
  }
  const int threads = threads_holding(a.dim / n, kHeld, kMaxThreads<T, kHeld>);
  if (threads > 0) return launch(Pass::template kernel<T, kHeld, true>(), grid, dim3(threads), device, stream, a);
  return launch(Pass::template kernel<T, 0, true>(), grid, dim3(threads_looping(a.dim / n)), device, stream, a);
}

template <class Pass>
int start(const NormModulate& a, dim3 grid, int dtype, int device, void* stream) {
  return with_type(dtype, [&](auto type) { return run<Pass, typename decltype(type)::type>(a, grid, device, stream); });
}

}  // namespace
}  // namespace mova::cuda

// x [b, s, d] by strides (in values), shift and scale float32 [b, d] by stride; writes out [b, s, d], mean, rstd [b, s].
MOVA_EXPORT int mova_cuda_norm_modulate_fwd(
    const void* x, int64_t x_batch, int64_t x_token, const float* shift, int64_t shift_batch, const float* scale,
    int64_t scale_batch, void* out, float* mean, float* rstd, int batch, int seq, int dim, float eps, int dtype, int device,
    void* stream) {
  using namespace mova::cuda;
  const NormModulate args{
      {x, x_batch, x_token}, {}, shift, scale, shift_batch, scale_batch, mean, rstd, out, nullptr, nullptr, seq, dim, eps};
  return start<Forward>(args, dim3(batch * seq), dtype, device, stream);
}

// Writes dx [b, s, d] and, by `programs` (at most s) blocks for each sample, float32 sums dshift, dscale [b, programs, d].
MOVA_EXPORT int mova_cuda_norm_modulate_bwd(
    const void* dout, int64_t dout_batch, int64_t dout_token, const void* x, int64_t x_batch, int64_t x_token,
    const float* scale, int64_t scale_batch, const float* mean, const float* rstd, void* dx, float* dshift, float* dscale,
    int batch, int seq, int dim, int programs, int dtype, int device, void* stream) {
  using namespace mova::cuda;
  if (programs < 1 || programs > seq) return cudaErrorInvalidValue;
  const NormModulate args{
      {x, x_batch, x_token}, {dout, dout_batch, dout_token}, nullptr, scale, 0, scale_batch, const_cast<float*>(mean),
      const_cast<float*>(rstd), dx, dshift, dscale, seq, dim, 0.0f};
  return start<Backward>(args, dim3(programs, batch), dtype, device, stream);
}
