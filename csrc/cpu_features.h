// Instruction sets that the CPU running the process has and the operating system lets it use.
#pragma once

#include <string>
#include <vector>

namespace mova {

// Names out of "avx2", "avx512", "avx512_bf16", "amx_bf16"; empty where none is there or the CPU is not x86.
std::vector<std::string> cpu_features();

}  // namespace mova
