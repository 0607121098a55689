// What the CUDA kernels share: 16-byte accesses, sums over a block, how a row is divided among threads, launches.
//
// One block works on one row [d] at a time. A thread has every blockDim.x-th *unit* of it (a vector of 16 bytes, or what
// one rotation needs). Up to HELD units stay in its registers, so that the row is read from memory once; wider rows are
// read again, from cache. Rows that are not aligned to 16 bytes take the same kernels with WIDE = false, value by value.
// All maths is in float32 and rounded once. Sources have no torch header and use of the CUDA runtime only what the tests'
// host emulation has too.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

// What Python calls: C functions that return a CUDA error code. Pointers are the device's; sizes are in values.
#define MOVA_EXPORT extern "C" __attribute__((visibility("default")))

namespace mova::cuda {

constexpr int kWarp = 32;
constexpr int kBytes = 16;

// Threads of a block at most. Narrow types have more values in a unit, and so need more registers for each thread.
template <class T, int HELD>
constexpr int kMaxThreads = HELD == 0 ? 256 : sizeof(T) == 4 ? 1024 : 512;

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float to_float(__half value) { return __half2float(value); }

template <class T>
__device__ T rounded(float value);
template <>
__device__ inline float rounded<float>(float value) {
  return value;
}
template <>
__device__ inline __nv_bfloat16 rounded<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ inline __half rounded<__half>(float value) {
  return __float2half_rn(value);
}

// N neighbouring values. Where WIDE they lie at a multiple of their size, or of 16 bytes if they are more, and are moved
// by accesses of that size; else one at a time. Stores name their instruction: left to itself the compiler splits some
// of them into single values (`python -m mova_kernels.check_cuda` would tell).
template <class T, int N, bool WIDE>
struct Pack {
  T value[N];

  static __device__ Pack load(const T* from) {
    Pack pack;
    if constexpr (WIDE) {
      Access access[sizeof(Pack) / sizeof(Access)];
#pragma unroll
      for (size_t i = 0; i < sizeof(Pack) / sizeof(Access); ++i) access[i] = reinterpret_cast<const Access*>(from)[i];
      memcpy(pack.value, access, sizeof(Pack));
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) pack.value[i] = from[i];
    }
    return pack;
  }
  __device__ void store(T* to) const {
    if constexpr (WIDE) {
      Access access[sizeof(Pack) / sizeof(Access)];
      memcpy(access, value, sizeof(Pack));
#pragma unroll
      for (size_t i = 0; i < sizeof(Pack) / sizeof(Access); ++i) __stwb(reinterpret_cast<Access*>(to) + i, access[i]);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) to[i] = value[i];
    }
  }
  __device__ float operator[](int i) const { return to_float(value[i]); }
  __device__ void set(int i, float v) { value[i] = rounded<T>(v); }

 private:
  using Access = std::conditional_t<sizeof(T) * N == 8, uint2, uint4>;
};

// Activations [b, s, d]: channels are adjacent, samples and tokens lie this many values apart.
struct Rows {
  const void* data;
  int64_t batch, token;

  template <class T>
  __device__ const T* at(int64_t b, int64_t s) const {
    return static_cast<const T*>(data) + b * batch + s * token;
  }
};

// body(k, u) for each unit u of the row that is this thread's, the k-th; k is a compile-time constant where HELD > 0.
template <int HELD, class Body>
__device__ __forceinline__ void each_unit(int units, Body body) {
  if constexpr (HELD > 0) {
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
      const int u = k * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
      if (u < units) body(k, u);
    }
  } else {
    for (int u = static_cast<int>(threadIdx.x); u < units; u += static_cast<int>(blockDim.x)) body(0, u);
  }
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

// Each of the N values summed over the block: the same in all threads, and in every run. All threads must call it.
template <int N>
__device__ __forceinline__ void block_sum(float (&value)[N]) {
  __shared__ float of_warps[N][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
#pragma unroll
  for (int n = 0; n < N; ++n) value[n] = warp_sum(value[n]);
  if (warps == 1) return;
  __syncthreads();  // what an earlier call left there has been read
  if (lane == 0) {
#pragma unroll
    for (int n = 0; n < N; ++n) of_warps[n][warp] = value[n];
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) value[n] = warp_sum(lane < warps ? of_warps[n][lane] : 0.0f);
}

__device__ __forceinline__ float reciprocal_root(float value) { return 1.0f / sqrtf(value); }

// Host side.

enum DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

template <class T>
struct Type {
  using type = T;
};

// call(Type<T>{}) for the T that `dtype` stands for.
template <class Call>
cudaError_t with_type(int dtype, Call call) {
  switch (dtype) {
    case kFloat32: return call(Type<float>{});
    case kBFloat16: return call(Type<__nv_bfloat16>{});
    case kFloat16: return call(Type<__half>{});
    default: return cudaErrorInvalidValue;
  }
}

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % kBytes == 0; }

// Whether every row begins at a multiple of 16 bytes.
inline bool aligned(const Rows& rows, int64_t size) {
  return aligned(rows.data) && rows.batch * size % kBytes == 0 && rows.token * size % kBytes == 0;
}

// Threads for a row of `units` in whole warps, at most `held` units for each; 0 if `most` threads are too few.
inline int threads_holding(int64_t units, int held, int most) {
  const int64_t threads = ((units + held - 1) / held + kWarp - 1) / kWarp * kWarp;
  return threads <= most ? static_cast<int>(threads) : 0;
}

// Threads for a row of which nothing is held.
inline int threads_looping(int64_t units) {
  const int64_t threads = (units + kWarp - 1) / kWarp * kWarp;
  return threads < kMaxThreads<float, 0> ? static_cast<int>(threads) : kMaxThreads<float, 0>;
}

template <class Args>
cudaError_t launch(void (*kernel)(Args), dim3 grid, dim3 block, int device, void* stream, const Args& args) {
  // This library's own copy of the runtime does not see which device the caller's copy has chosen.
  const cudaError_t chosen = cudaSetDevice(device);
  if (chosen != cudaSuccess) return chosen;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, args);
}

}  // namespace mova::cuda
