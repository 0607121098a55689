// Which copy of the CPU kernels runs: the one for the widest instruction set that the CPU has, or the one asked for.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace mova::cpu {

// Kernel sets that this CPU can run, out of "baseline", "avx2", "avx512" and "avx512_bf16", the best last.
std::vector<std::string> isas();

// The set in use; the widest until `use_isa` names another. An unknown or unusable name raises ValueError.
std::string isa();
void use_isa(std::string name);

const KernelTable& kernels();

}  // namespace mova::cpu
