// Compiled once for each instruction set, with MOVA_ISA its name: see CMakeLists.txt. No library header may come in here.
#include "bias_gelu.h"
#include "gate_residual.h"
#include "layer_norm.h"
#include "nf4.h"
#include "rms_norm.h"

namespace mova::cpu::MOVA_ISA {

#define MOVA_BY_VARIANT(kernel, type, a, b, c) \
  { kernel<type, a>, kernel<type, b>, kernel<type, c> }
#define MOVA_RMS_NORM(kernel) \
  { MOVA_BY_VARIANT(kernel, float, kNoRotation, kInterleaved, kHalves), \
    MOVA_BY_VARIANT(kernel, BFloat16, kNoRotation, kInterleaved, kHalves) }
#define MOVA_LAYER_NORM(kernel) \
  { MOVA_BY_VARIANT(kernel, float, kNoResidual, kPlainResidual, kGatedResidual), \
    MOVA_BY_VARIANT(kernel, BFloat16, kNoResidual, kPlainResidual, kGatedResidual) }

// constexpr: filled in by the compiler, so that loading the library runs no instruction of this set.
constexpr KernelTable kTable = {
    MOVA_RMS_NORM(rms_norm_fwd_kernel),
    MOVA_RMS_NORM(rms_norm_bwd_kernel),
    MOVA_LAYER_NORM(layer_norm_fwd_kernel),
    MOVA_LAYER_NORM(layer_norm_bwd_kernel),
    {{gate_residual_fwd_kernel<float, false>, gate_residual_fwd_kernel<float, true>},
     {gate_residual_fwd_kernel<BFloat16, false>, gate_residual_fwd_kernel<BFloat16, true>}},
    {gate_residual_bwd_kernel<float>, gate_residual_bwd_kernel<BFloat16>},
    {bias_gelu_fwd_kernel<float>, bias_gelu_fwd_kernel<BFloat16>},
    {bias_gelu_bwd_kernel<float>, bias_gelu_bwd_kernel<BFloat16>},
    {dequantise_nf4_kernel<float>, dequantise_nf4_kernel<BFloat16>},
    {quantise_nf4_kernel<float>, quantise_nf4_kernel<BFloat16>},
};
extern const KernelTable table = kTable;

}  // namespace mova::cpu::MOVA_ISA
