// Quantised weights as numbers, and numbers as quantised weights: arguments checked, memory provided, rows handed to the kernels in parallel.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>

#include "dispatch.h"

namespace mova::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kElements = 1 << 16;  // of a task that is worth a thread

Tensor checked(const char* name, const Tensor& x, at::ScalarType dtype, at::IntArrayRef sizes) {
  TORCH_CHECK_TYPE(x.scalar_type() == dtype, name, " must be ", dtype, ", got ", x.scalar_type());
  TORCH_CHECK_VALUE(x.sizes() == sizes, name, " must be ", sizes, ", got ", x.sizes());
  return x.contiguous();
}

Tensor dequantise_nf4(
    const Tensor& weight, const Tensor& absmax, const OptionalTensor& nested_absmax, const OptionalTensor& nested_offset,
    const Tensor& values, const Tensor& scale_values, at::ScalarType dtype) {
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kBFloat16,
      "dtype is ", dtype, "; the native CPU kernels give float32 and bfloat16, the reference gives the others");
  TORCH_CHECK_TYPE(weight.scalar_type() == at::kByte, "weight must be Byte, got ", weight.scalar_type());
  TORCH_CHECK_VALUE(
      weight.dim() == 2 && weight.size(1) % (kNf4Block / 2) == 0,
      "weight must be [o, i / 2] with i a multiple of ", kNf4Block, ", got ", weight.sizes());
  const int64_t o = weight.size(0), blocks = weight.size(1) / (kNf4Block / 2);
  const bool nested = absmax.scalar_type() == at::kByte;
  TORCH_CHECK_VALUE(
      nested_absmax.has_value() == nested && nested_offset.has_value() == nested,
      "nested_absmax and nested_offset go with an absmax of Byte, and with none other");
  const Tensor codes = weight.contiguous(), scales = checked("absmax", absmax, nested ? at::kByte : at::kFloat, {o, blocks});
  const Tensor numbers = checked("values", values, at::kFloat, {16});
  const Tensor scale_numbers = checked("scale_values", scale_values, at::kFloat, {256});
  const int64_t groups = (o * blocks + kNf4NestedBlock - 1) / kNf4NestedBlock;
  const Tensor factors = nested ? checked("nested_absmax", *nested_absmax, at::kFloat, {groups}) : Tensor();
  const Tensor offset = nested ? checked("nested_offset", *nested_offset, at::kFloat, {}) : Tensor();
  Tensor out = at::empty({o, blocks * kNf4Block}, weight.options().dtype(dtype));
  const DequantiseNf4 args{
      codes.const_data_ptr<uint8_t>(), numbers.const_data_ptr<float>(), nested ? nullptr : scales.const_data_ptr<float>(),
      nested ? scales.const_data_ptr<uint8_t>() : nullptr, scale_numbers.const_data_ptr<float>(),
      nested ? factors.const_data_ptr<float>() : nullptr, nested ? *offset.const_data_ptr<float>() : 0.0f, blocks,
      out.mutable_data_ptr()};
  const auto kernel = kernels().dequantise_nf4[dtype == at::kBFloat16 ? kBFloat16 : kFloat32];
  at::parallel_for(0, o, std::max<int64_t>(1, kElements / std::max<int64_t>(1, out.size(1))), [&](int64_t begin, int64_t end) {
    kernel(args, begin, end, std::unique_ptr<float[]>(new float[blocks]).get());
  });
  return out;
}

std::tuple<Tensor, Tensor> quantise_nf4(const Tensor& weight, const Tensor& bounds, double least) {
  const at::ScalarType dtype = weight.scalar_type();
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kBFloat16,
      "weight is ", dtype, "; the native CPU kernels take float32 and bfloat16, the reference takes the others");
  TORCH_CHECK_VALUE(
      weight.dim() == 2 && weight.size(1) % kNf4Block == 0,
      "weight must be [o, i] with i a multiple of ", kNf4Block, ", got ", weight.sizes());
  const Tensor numbers = weight.stride(1) == 1 || weight.size(1) == 0 ? weight : weight.contiguous();
  const Tensor between = checked("bounds", bounds, at::kFloat, {kNf4Bounds});
  const int64_t o = weight.size(0), i = weight.size(1), blocks = i / kNf4Block;
  Tensor codes = at::empty({o, i / 2}, weight.options().dtype(at::kByte));
  Tensor absmax = at::empty({o, blocks}, weight.options().dtype(at::kFloat));
  const QuantiseNf4 args{
      numbers.const_data_ptr(), numbers.stride(0), between.const_data_ptr<float>(), (float)least, blocks,
      absmax.mutable_data_ptr<float>(), codes.mutable_data_ptr<uint8_t>()};
  const auto kernel = kernels().quantise_nf4[dtype == at::kBFloat16 ? kBFloat16 : kFloat32];
  at::parallel_for(0, o, std::max<int64_t>(1, kElements / std::max<int64_t>(1, i)), [&](int64_t begin, int64_t end) {
    kernel(args, begin, end);
  });
  return {codes, absmax};
}

}  // namespace
}  // namespace mova::cpu

TORCH_LIBRARY_FRAGMENT(mova_kernels, library) {
  library.def(
      "dequantise_nf4(Tensor weight, Tensor absmax, Tensor? nested_absmax, Tensor? nested_offset, Tensor values,"
      " Tensor scale_values, ScalarType dtype) -> Tensor");
  library.def("quantise_nf4(Tensor weight, Tensor bounds, float least) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(mova_kernels, CPU, library) {
  library.impl("dequantise_nf4", &mova::cpu::dequantise_nf4);
  library.impl("quantise_nf4", &mova::cpu::quantise_nf4);
}
