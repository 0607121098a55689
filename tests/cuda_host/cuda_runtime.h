// The part of CUDA that csrc/cuda uses, on the host: the tests compile the kernels with a C++ compiler against this
// header in the place of NVIDIA's, and so run them where no GPU is.
//
// Every CUDA thread is a fiber. A warp runs as far as it can before the next one does, its lanes in turns from shuffle to
// shuffle; the blocks of a grid run one after another. A warp whose lanes do not meet at a shuffle, or a block whose
// threads do not meet at a barrier, fails the launch. Threads, warps and blocks run in ascending order, or in descending
// order after cuda_host_descending(1): a kernel without races gives the same bits. Shared memory holds at first what
// the block before has left there.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct alignas(8) uint2 {
  unsigned x, y;
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorLaunchFailure = 719,
};
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
using cudaStream_t = struct Stream*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline const char* cudaGetErrorString(cudaError_t code) {
  switch (code) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    default: return "unspecified launch failure";
  }
}
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device) {
  *value = 1;
  return cudaSetDevice(device);
}

inline dim3 gridDim, blockDim;
inline uint3 blockIdx, threadIdx;

namespace cuda_host {

constexpr size_t kStack = 64 * 1024, kWarpSize = 32, kMostThreads = 1024;

enum class At { kReady, kShuffle, kBarrier, kEnd };

struct Thread {
  ucontext_t context;
  jmp_buf stopped;
  bool begun;
  std::unique_ptr<char[]> stack;
  uint3 index;
  At at;
  float offered[2];  // to a shuffle; two, since a lane may offer its next value before others have read this one
  unsigned shuffles;
};

inline std::deque<Thread> threads;  // a context must not move
inline size_t running;
inline jmp_buf scheduler;
inline std::function<void()> kernel;
inline bool descending = false;

// Switching by longjmp, which unlike swapcontext makes no system call; a context serves only to begin a fiber.
inline void stop_at(At place) {
  threads[running].at = place;
  if (_setjmp(threads[running].stopped) == 0) _longjmp(scheduler, 1);
}

inline void resume(Thread& thread) {
  threadIdx = thread.index;
  if (_setjmp(scheduler) != 0) return;
  if (thread.begun) _longjmp(thread.stopped, 1);
  thread.begun = true;
  setcontext(&thread.context);
}

// Fibers are costly to make: each runs its thread of one block after another.
inline void fiber() {
  for (;;) {
    kernel();
    stop_at(At::kEnd);
  }
}

inline void prepare(size_t count, dim3 block) {
  while (threads.size() < count) {
    Thread& thread = threads.emplace_back();
    thread.stack = std::make_unique<char[]>(kStack);
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStack;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, fiber, 0);
  }
  for (size_t i = 0; i < count; ++i) {
    Thread& thread = threads[i];
    thread.index = {unsigned(i % block.x), unsigned(i / block.x % block.y), unsigned(i / block.x / block.y)};
    thread.at = At::kReady;
    thread.shuffles = 0;
  }
}

// Whether all of the threads from `begin` to `end` have stopped at `place`.
inline bool all_at(size_t begin, size_t end, At place) {
  for (size_t i = begin; i < end; ++i) {
    if (threads[i].at != place) return false;
  }
  return true;
}

inline void release(size_t begin, size_t end) {
  for (size_t i = begin; i < end; ++i) threads[i].at = At::kReady;
}

// Runs a warp until its lanes stop at a barrier, end, or part.
inline void run_warp(size_t begin, size_t end) {
  do {
    for (size_t i = begin; i < end; ++i) {
      running = descending ? begin + end - 1 - i : i;
      if (threads[running].at == At::kReady) resume(threads[running]);
    }
    if (!all_at(begin, end, At::kShuffle)) return;
    release(begin, end);
  } while (true);
}

inline cudaError_t run_block(dim3 block) {
  const size_t count = size_t(block.x) * block.y * block.z, warps = (count + kWarpSize - 1) / kWarpSize;
  prepare(count, block);
  while (true) {
    for (size_t i = 0; i < warps; ++i) {
      const size_t begin = (descending ? warps - 1 - i : i) * kWarpSize;
      run_warp(begin, begin + kWarpSize < count ? begin + kWarpSize : count);
    }
    if (all_at(0, count, At::kEnd)) return cudaSuccess;
    if (!all_at(0, count, At::kBarrier)) break;
    release(0, count);
  }
  threads.clear();  // they did not all come to one place, and never will
  return cudaErrorLaunchFailure;
}

}  // namespace cuda_host

extern "C" inline __attribute__((used)) void cuda_host_descending(int descending) { cuda_host::descending = descending; }

inline void __syncthreads() { cuda_host::stop_at(cuda_host::At::kBarrier); }

inline float __shfl_xor_sync(unsigned, float value, int distance) {
  using namespace cuda_host;
  const size_t self = running;
  const unsigned slot = threads[self].shuffles++ % 2;
  threads[self].offered[slot] = value;
  stop_at(At::kShuffle);
  return threads[self ^ size_t(distance)].offered[slot];
}

template <class Vector>
void __stwb(Vector* to, Vector value) {
  *to = value;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  const size_t blocks = size_t(grid.x) * grid.y * grid.z, threads = size_t(block.x) * block.y * block.z;
  if (blocks == 0 || threads == 0 || threads > cuda_host::kMostThreads || grid.y > 65535 || grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  gridDim = grid;
  blockDim = block;
  cuda_host::kernel = [&] { kernel(arguments...); };
  for (size_t i = 0; i < blocks; ++i) {
    const size_t at = cuda_host::descending ? blocks - 1 - i : i;
    blockIdx = {unsigned(at % grid.x), unsigned(at / grid.x % grid.y), unsigned(at / grid.x / grid.y)};
    const cudaError_t result = cuda_host::run_block(block);
    if (result != cudaSuccess) return result;
  }
  return cudaSuccess;
}
