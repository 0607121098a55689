// What the operators share on ATen's side: checks of what a caller passes, views for the kernels, and sums over rows whose order
// does not depend on the number of threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "kernels.h"

namespace mova::cpu {

// [b, s, d] of float32 or bfloat16; ValueError or TypeError with the argument's name otherwise.
void check_activations(const char* name, const at::Tensor& x);
// The same shape, dtype and device as x.
void check_like(const char* name, const at::Tensor& tensor, const char* x_name, const at::Tensor& x);

inline Type type_of(const at::Tensor& x) { return x.scalar_type() == at::kBFloat16 ? kBFloat16 : kFloat32; }

// Adjacent channels: the tensor itself where its rows can be read in place, else a copy. Keep it alive as long as `view`'s result.
inline at::Tensor with_rows(const at::Tensor& x) {
  return x.size(2) <= 1 || x.stride(2) == 1 ? x : x.contiguous();
}
inline Rows view(const at::Tensor& x) { return {x.const_data_ptr(), x.stride(0), x.stride(1)}; }

// A parameter or modulation as contiguous float32, of shape [d] or [b, d] as x has them; ValueError otherwise.
at::Tensor vector_of(const char* name, const at::Tensor& vector, const at::Tensor& x, bool per_sample);

inline const float* floats(const at::Tensor& x) { return x.defined() ? x.const_data_ptr<float>() : nullptr; }

inline at::Tensor empty_like_rows(const at::Tensor& x) { return at::empty(x.sizes(), x.options()); }
inline at::Tensor empty_statistics(const at::Tensor& x) {
  return at::empty({x.size(0), x.size(1)}, x.options().dtype(at::kFloat));
}

// Call body(begin, end) over all b*s rows, in parallel.
template <class Body>
void parallel_rows(const at::Tensor& x, const Body& body) {
  constexpr int64_t elements = 1 << 15;  // of a task that is worth a thread
  at::parallel_for(0, x.size(0) * x.size(1), std::max<int64_t>(1, elements / x.size(2)), body);
}

// Partial sums over rows for up to three vectors of parameters. Rows are cut into chunks by their number alone, each chunk is summed
// in order by one thread, and the chunks are added in order: the result does not depend on the number of threads.
class ChunkedSums {
 public:
  ChunkedSums(const at::Tensor& x, int vectors);

  // Call body(begin, end, ParameterSums) for each chunk, in parallel. Chunks do not cross samples.
  template <class Body>
  void run(const Body& body) const {
    at::parallel_for(0, batch_ * per_sample_, 1, [&](int64_t first, int64_t last) {
      for (int64_t chunk = first; chunk < last; ++chunk) {
        const int64_t begin = chunk / per_sample_ * seq_ + chunk % per_sample_ * rows_;
        const int64_t end = std::min(begin + rows_, (chunk / per_sample_ + 1) * seq_);
        body(begin, end, ParameterSums{sums(0, chunk), sums(1, chunk), sums(2, chunk)});
      }
    });
  }

  // The total of vector `index` in the shape and dtype of `like`: [d], or [b, d] with a total for each sample.
  at::Tensor total(int index, const at::Tensor& like) const;

 private:
  float* sums(int index, int64_t chunk) const {
    return index < vectors_ ? partial_.mutable_data_ptr<float>() + (index * batch_ * per_sample_ + chunk) * dim_ : nullptr;
  }

  int64_t batch_, seq_, dim_, rows_, per_sample_;
  int vectors_;
  at::Tensor partial_;
};

}  // namespace mova::cpu
