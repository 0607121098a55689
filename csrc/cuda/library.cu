// The library beside its kernels: its interface's number, the device's size, words for errors, and the sum over blocks.
#include "common.cuh"

namespace mova::cuda {
namespace {

// Columns of a block, and how many of its threads share one.
constexpr int kColumns = 32, kThreads = 16;

struct ColumnSums {
  const float* partial;  // [n, p, d]
  void* out;             // [n, d]
  int p, d;
};

// The second stage of a sum over rows: each column by the same threads in the same order, whatever else runs.
template <class T>
__global__ void __launch_bounds__(kColumns* kThreads) column_sums_kernel(ColumnSums a) {
  __shared__ float shared[kThreads][kColumns];
  const int column = blockIdx.x * kColumns + threadIdx.x;
  const float* partial = a.partial + static_cast<int64_t>(blockIdx.y) * a.p * a.d;
  float total = 0.0f;
  if (column < a.d) {
    for (int row = threadIdx.y; row < a.p; row += kThreads) total += partial[static_cast<int64_t>(row) * a.d + column];
  }
  shared[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y != 0 || column >= a.d) return;
  for (int i = 1; i < kThreads; ++i) total += shared[i][threadIdx.x];
  static_cast<T*>(a.out)[static_cast<int64_t>(blockIdx.y) * a.d + column] = rounded<T>(total);
}

}  // namespace
}  // namespace mova::cuda

// To be raised when a signature changes; kernels/cuda/library.py compares.
MOVA_EXPORT int mova_cuda_interface() { return 1; }

MOVA_EXPORT const char* mova_cuda_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

MOVA_EXPORT int mova_cuda_multiprocessors(int* count, int device) {
  return cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
}

// out [n, d] = sum over p of float32 partial [n, p, d].
MOVA_EXPORT int mova_cuda_column_sums(const float* partial, void* out, int n, int p, int d, int dtype, int device, void* stream) {
  using namespace mova::cuda;
  return with_type(dtype, [&](auto type) {
    const dim3 grid((d + kColumns - 1) / kColumns, n), block(kColumns, kThreads);
    return launch(column_sums_kernel<typename decltype(type)::type>, grid, block, device, stream, ColumnSums{partial, out, p, d});
  });
}
