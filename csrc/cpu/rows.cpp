#include "rows.h"

namespace mova::cpu {

void check_activations(const char* name, const at::Tensor& x) {
  TORCH_CHECK_TYPE(
      x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16,
      name, " is ", x.scalar_type(), "; the native CPU kernels take float32 and bfloat16, the reference takes the others");
  TORCH_CHECK_VALUE(x.dim() == 3 && x.size(2) > 0, name, " must be [b, s, d] with d > 0, got ", x.sizes());
}

void check_like(const char* name, const at::Tensor& tensor, const char* x_name, const at::Tensor& x) {
  TORCH_CHECK_VALUE(
      tensor.sizes() == x.sizes(), name, " must have ", x_name, "'s shape ", x.sizes(), ", got ", tensor.sizes());
  TORCH_CHECK_TYPE(
      tensor.scalar_type() == x.scalar_type(),
      name, " must have ", x_name, "'s dtype ", x.scalar_type(), ", got ", tensor.scalar_type());
}

at::Tensor vector_of(const char* name, const at::Tensor& vector, const at::Tensor& x, bool per_sample) {
  TORCH_CHECK_TYPE(vector.is_floating_point(), name, " must be floating point, got ", vector.scalar_type());
  const bool fits = per_sample ? vector.dim() == 2 && vector.size(0) == x.size(0) && vector.size(1) == x.size(2)
                               : vector.dim() == 1 && vector.size(0) == x.size(2);
  TORCH_CHECK_VALUE(
      fits, name, " must be ", per_sample ? "[b, d]" : "[d]", " for activations ", x.sizes(), ", got ", vector.sizes());
  return vector.to(at::kFloat).contiguous();
}

ChunkedSums::ChunkedSums(const at::Tensor& x, int vectors)
    : batch_(x.size(0)), seq_(x.size(1)), dim_(x.size(2)), vectors_(vectors) {
  constexpr int64_t least_rows = 32, most_chunks = 128;  // of a sample: enough for the threads, few enough to add up
  rows_ = std::max(least_rows, (seq_ + most_chunks - 1) / most_chunks);
  per_sample_ = (seq_ + rows_ - 1) / rows_;
  partial_ = at::empty({vectors, batch_ * per_sample_, dim_}, x.options().dtype(at::kFloat));
}

at::Tensor ChunkedSums::total(int index, const at::Tensor& like) const {
  const bool each_sample = like.dim() == 2;
  const int64_t groups = each_sample ? batch_ : 1, chunks = each_sample ? per_sample_ : batch_ * per_sample_;
  const at::Tensor result = at::empty({groups, dim_}, partial_.options());
  float* out = result.mutable_data_ptr<float>();
  constexpr int64_t columns = 256;
  const int64_t blocks = (dim_ + columns - 1) / columns;
  at::parallel_for(0, groups * blocks, 16, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t group = task / blocks, begin = task % blocks * columns, end = std::min(begin + columns, dim_);
      float* to = out + group * dim_;
      std::fill(to + begin, to + end, 0.0f);
      for (int64_t chunk = group * chunks; chunk < (group + 1) * chunks; ++chunk) {
        const float* from = sums(index, chunk);
        for (int64_t j = begin; j < end; ++j) to[j] += from[j];
      }
    }
  });
  return result.view(like.sizes()).to(like.scalar_type());
}

}  // namespace mova::cpu
