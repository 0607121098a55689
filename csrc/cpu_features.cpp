#include "cpu_features.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace mova {

#if defined(__x86_64__)
namespace {

struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);  // leaves the zeros where the leaf does not exist
  return r;
}

bool bit(uint32_t value, int index) { return (value >> index) & 1u; }

// XCR0: the register states that the operating system saves on a context switch.
uint64_t saved_states() {
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux hands out the AMX tile registers only to a process that asks for them.
bool tiles_granted() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

}  // namespace
#endif

std::vector<std::string> cpu_features() {
  std::vector<std::string> found;
#if defined(__x86_64__)
  constexpr uint64_t ymm = 0x6, zmm = 0xe6, tiles = 0x60000;  // XCR0 masks: SSE+AVX; with opmask and ZMM; TILECFG+TILEDATA
  const Registers base = cpuid(1, 0), extended = cpuid(7, 0), further = cpuid(7, 1);
  const uint64_t saved = bit(base.ecx, 27) ? saved_states() : 0;  // OSXSAVE: xgetbv may be executed
  if ((saved & ymm) == ymm && bit(extended.ebx, 5) && bit(base.ecx, 12)) found.push_back("avx2");  // bit 12: FMA
  if ((saved & zmm) == zmm && bit(extended.ebx, 16)) {
    // The subsets that every server CPU with AVX-512 has, and that kernels may take for granted: DQ, BW, VL.
    if (bit(extended.ebx, 17) && bit(extended.ebx, 30) && bit(extended.ebx, 31)) found.push_back("avx512");
    if (bit(further.eax, 5)) found.push_back("avx512_bf16");
  }
  if ((saved & tiles) == tiles && bit(extended.edx, 24) && bit(extended.edx, 22) && tiles_granted()) {
    found.push_back("amx_bf16");
  }
#endif
  return found;
}

}  // namespace mova
