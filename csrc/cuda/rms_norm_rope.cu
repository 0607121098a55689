// RMSNorm over a row (Zhang & Sennrich, 2019), then rotary embedding of each head (Su et al., 2021), and the gradients.
#include "common.cuh"

namespace mova::cuda {
namespace {

struct RmsNormRope {
  Rows x, dout;  // dout in the backward only
  const float *weight, *cos, *sin;
  float* rstd;     // [b, s]: written forward, read backward
  void* result;    // [b, s, d]: out forward, dx backward
  float* dweight;  // [b, p, d] with p = gridDim.x, backward only
  int seq, dim, half;
  float eps;
};

// P pairs of channels that are rotated together: neighbours where INTERLEAVED, else half a head apart.
template <class T, int P, bool INTERLEAVED, bool WIDE>
struct Pairs {
  Pack<T, INTERLEAVED ? 2 * P : P, WIDE> part[INTERLEAVED ? 1 : 2];

  static __device__ Pairs load(const T* from, int half) {
    Pairs pairs;
    pairs.part[0] = pairs.part[0].load(from);
    if constexpr (!INTERLEAVED) pairs.part[1] = pairs.part[1].load(from + half);
    return pairs;
  }
  __device__ void store(T* to, int half) const {
    part[0].store(to);
    if constexpr (!INTERLEAVED) part[1].store(to + half);
  }
  __device__ float first(int i) const { return INTERLEAVED ? part[0][2 * i] : part[0][i]; }
  __device__ float second(int i) const { return INTERLEAVED ? part[0][2 * i + 1] : part[!INTERLEAVED][i]; }
  __device__ void set(int i, float first, float second) {
    part[0].set(INTERLEAVED ? 2 * i : i, first);
    part[!INTERLEAVED].set(INTERLEAVED ? 2 * i + 1 : i, second);
  }
};

// A unit is one vector of 16 bytes where pairs are neighbours, else two.
template <class T, bool INTERLEAVED, bool WIDE>
constexpr int kPairs = !WIDE ? 1 : kBytes / static_cast<int>(sizeof(T)) / (INTERLEAVED ? 2 : 1);
template <bool INTERLEAVED>
constexpr int kHeld = INTERLEAVED ? 2 : 1;

// Where unit u of a row lies: its first channel, and its first angle.
template <int P, bool INTERLEAVED>
struct Place {
  int channel, angle;

  __device__ Place(int u, int half) {
    angle = u * P % half;
    channel = INTERLEAVED ? 2 * u * P : 2 * u * P - angle;
  }
};

template <class T, bool INTERLEAVED, int HELD, bool WIDE>
__global__ void __launch_bounds__(kMaxThreads<T, HELD>) rms_norm_rope_fwd_kernel(RmsNormRope a) {
  constexpr int P = kPairs<T, INTERLEAVED, WIDE>;
  using Values = Pairs<T, P, INTERLEAVED, WIDE>;
  using Weights = Pairs<float, P, INTERLEAVED, WIDE>;
  using Angles = Pack<float, P, WIDE>;
  using Unit = Place<P, INTERLEAVED>;
  const int64_t row = blockIdx.x, s = row % a.seq;
  const T* x = a.x.at<T>(row / a.seq, s);
  const float *cos = a.cos + s * a.half, *sin = a.sin + s * a.half;
  T* out = static_cast<T*>(a.result) + row * a.dim;
  const int units = a.dim / (2 * P);

  Values held[HELD > 0 ? HELD : 1];
  const auto load = [&](int u) { return Values::load(x + Unit(u, a.half).channel, a.half); };
  if constexpr (HELD > 0) each_unit<HELD>(units, [&](int k, int u) { held[k] = load(u); });
  const auto values = [&](int k, int u) {
    if constexpr (HELD > 0) return held[k];
    return load(u);
  };

  float squares[1] = {};
  each_unit<HELD>(units, [&](int k, int u) {
    const Values v = values(k, u);
#pragma unroll
    for (int i = 0; i < P; ++i) squares[0] += v.first(i) * v.first(i) + v.second(i) * v.second(i);
  });
  block_sum(squares);
  const float rstd = reciprocal_root(squares[0] / a.dim + a.eps);
  if (threadIdx.x == 0) a.rstd[row] = rstd;
  each_unit<HELD>(units, [&](int k, int u) {
    const Unit unit(u, a.half);
    Values v = values(k, u);
    const Weights w = Weights::load(a.weight + unit.channel, a.half);
    const Angles c = Angles::load(cos + unit.angle), z = Angles::load(sin + unit.angle);
#pragma unroll
    for (int i = 0; i < P; ++i) {
      const float n1 = v.first(i) * rstd * w.first(i), n2 = v.second(i) * rstd * w.second(i);
      v.set(i, n1 * c[i] - n2 * z[i], n1 * z[i] + n2 * c[i]);
    }
    v.store(out + unit.channel, a.half);
  });
}

// With u = dout rotated back, n = x * rstd, g = u * weight: dx = rstd * (g - n * mean(g * n)), dweight = sum(u * n).
// A block has every p-th row of one sample and sums over them in a row of its own of dweight.
template <class T, bool INTERLEAVED, int HELD, bool WIDE>
__global__ void __launch_bounds__(kMaxThreads<T, HELD>) rms_norm_rope_bwd_kernel(RmsNormRope a) {
  constexpr int P = kPairs<T, INTERLEAVED, WIDE>;
  using Values = Pairs<T, P, INTERLEAVED, WIDE>;
  using Weights = Pairs<float, P, INTERLEAVED, WIDE>;
  using Angles = Pack<float, P, WIDE>;
  using Unit = Place<P, INTERLEAVED>;
  struct Both {
    Values x, dout;
  };
  const int64_t b = blockIdx.y;
  float* dweight = a.dweight + (b * gridDim.x + blockIdx.x) * a.dim;
  const int units = a.dim / (2 * P);
  Weights totals[HELD > 0 ? HELD : 1] = {};

  for (int s = blockIdx.x; s < a.seq; s += gridDim.x) {
    const int64_t row = b * a.seq + s;
    const T *x = a.x.at<T>(b, s), *dout = a.dout.at<T>(b, s);
    const float *cos = a.cos + static_cast<int64_t>(s) * a.half, *sin = a.sin + static_cast<int64_t>(s) * a.half;
    T* dx = static_cast<T*>(a.result) + row * a.dim;
    const float rstd = a.rstd[row];

    Both held[HELD > 0 ? HELD : 1];
    const auto load = [&](int u) {
      const int channel = Unit(u, a.half).channel;
      return Both{Values::load(x + channel, a.half), Values::load(dout + channel, a.half)};
    };
    if constexpr (HELD > 0) each_unit<HELD>(units, [&](int k, int u) { held[k] = load(u); });
    const auto both = [&](int k, int u) {
      if constexpr (HELD > 0) return held[k];
      return load(u);
    };
    float along[1] = {};  // sum of g * n
    each_unit<HELD>(units, [&](int k, int u) {
      const Unit unit(u, a.half);
      const auto [v, d] = both(k, u);
      const Weights w = Weights::load(a.weight + unit.channel, a.half);
      const Angles c = Angles::load(cos + unit.angle), z = Angles::load(sin + unit.angle);
      // A thread's own columns in every row: sums kept in memory need no other thread's.
      if (HELD == 0 && s != static_cast<int>(blockIdx.x)) {
        totals[0] = Weights::load(dweight + unit.channel, a.half);
      } else if (HELD == 0) {
        totals[0] = {};
      }
#pragma unroll
      for (int i = 0; i < P; ++i) {
        const float u1 = d.first(i) * c[i] + d.second(i) * z[i], u2 = d.second(i) * c[i] - d.first(i) * z[i];
        const float n1 = v.first(i) * rstd, n2 = v.second(i) * rstd;
        along[0] += u1 * w.first(i) * n1 + u2 * w.second(i) * n2;
        totals[k].set(i, totals[k].first(i) + u1 * n1, totals[k].second(i) + u2 * n2);
      }
      if (HELD == 0) totals[0].store(dweight + unit.channel, a.half);
    });
    block_sum(along);
    const float mean = along[0] / a.dim;
    each_unit<HELD>(units, [&](int k, int u) {
      const Unit unit(u, a.half);
      auto [v, d] = both(k, u);
      const Weights w = Weights::load(a.weight + unit.channel, a.half);
      const Angles c = Angles::load(cos + unit.angle), z = Angles::load(sin + unit.angle);
#pragma unroll
      for (int i = 0; i < P; ++i) {
        const float u1 = d.first(i) * c[i] + d.second(i) * z[i], u2 = d.second(i) * c[i] - d.first(i) * z[i];
        const float n1 = v.first(i) * rstd, n2 = v.second(i) * rstd;
        v.set(i, rstd * (u1 * w.first(i) - n1 * mean), rstd * (u2 * w.second(i) - n2 * mean));
      }
      v.store(dx + unit.channel, a.half);
    });
  }
  if constexpr (HELD > 0) {
    each_unit<HELD>(units, [&](int k, int u) { totals[k].store(dweight + Unit(u, a.half).channel, a.half); });
  }
}

struct Forward {
  template <class T, bool INTERLEAVED, int HELD, bool WIDE>
  static auto kernel() {
    return &rms_norm_rope_fwd_kernel<T, INTERLEAVED, HELD, WIDE>;
  }
};

struct Backward {
  template <class T, bool INTERLEAVED, int HELD, bool WIDE>
  static auto kernel() {
    return &rms_norm_rope_bwd_kernel<T, INTERLEAVED, HELD, WIDE>;
  }
};

template <class Pass, class T, bool INTERLEAVED>
cudaError_t run(const RmsNormRope& a, dim3 grid, int device, void* stream) {
  constexpr int P = kPairs<T, INTERLEAVED, true>, held = kHeld<INTERLEAVED>;
  const int64_t size = sizeof(T);
  // Then a unit lies within one head, and the rows of results are aligned as their beginnings are.
  const bool wide = a.half % P == 0 && aligned(a.x, size) && aligned(a.dout, size) && aligned(a.weight) && aligned(a.cos) &&
                    aligned(a.sin) && aligned(a.result) && aligned(a.dweight);
  if (!wide) {
    const dim3 block(threads_looping(a.dim / 2));
    return launch(Pass::template kernel<T, INTERLEAVED, 0, false>(), grid, block, device, stream, a);
  }
  const int units = a.dim / (2 * P), threads = threads_holding(units, held, kMaxThreads<T, held>);
  if (threads > 0) {
    return launch(Pass::template kernel<T, INTERLEAVED, held, true>(), grid, dim3(threads), device, stream, a);
  }
  const dim3 block(threads_looping(units));
  return launch(Pass::template kernel<T, INTERLEAVED, 0, true>(), grid, block, device, stream, a);
}

template <class Pass>
int start(const RmsNormRope& a, dim3 grid, int interleaved, int dtype, int device, void* stream) {
  return with_type(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return interleaved ? run<Pass, T, true>(a, grid, device, stream) : run<Pass, T, false>(a, grid, device, stream);
  });
}

}  // namespace
}  // namespace mova::cuda

// x [b, s, d] by strides (in values), weight float32 [d], cos and sin float32 [s, half]; d is a multiple of 2 * half.
// Writes out [b, s, d] and rstd [b, s].
MOVA_EXPORT int mova_cuda_rms_norm_rope_fwd(
    const void* x, int64_t x_batch, int64_t x_token, const float* weight, const float* cos, const float* sin, void* out,
    float* rstd, int batch, int seq, int dim, int half, float eps, int interleaved, int dtype, int device, void* stream) {
  using namespace mova::cuda;
  if (half < 1 || dim % (2 * half) != 0) return cudaErrorInvalidValue;
  const RmsNormRope args{{x, x_batch, x_token}, {}, weight, cos, sin, rstd, out, nullptr, seq, dim, half, eps};
  return start<Forward>(args, dim3(batch * seq), interleaved, dtype, device, stream);
}

// Writes dx [b, s, d] and, by `programs` (at most s) blocks for each sample, float32 sums dweight [b, programs, d].
MOVA_EXPORT int mova_cuda_rms_norm_rope_bwd(
    const void* dout, int64_t dout_batch, int64_t dout_token, const void* x, int64_t x_batch, int64_t x_token,
    const float* weight, const float* cos, const float* sin, const float* rstd, void* dx, float* dweight, int batch, int seq,
    int dim, int half, int interleaved, int programs, int dtype, int device, void* stream) {
  using namespace mova::cuda;
  if (half < 1 || dim % (2 * half) != 0 || programs < 1 || programs > seq) return cudaErrorInvalidValue;
  const RmsNormRope args{
      {x, x_batch, x_token}, {dout, dout_batch, dout_token}, weight, cos, sin, const_cast<float*>(rstd), dx, dweight, seq, dim,
      half, 0.0f};
  return start<Backward>(args, dim3(programs, batch), interleaved, dtype, device, stream);
}
