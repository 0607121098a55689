#include "dispatch.h"

#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <atomic>

#include "../cpu_features.h"

namespace mova::cpu {
namespace {

struct Set {
  const char* name;
  const KernelTable* table;
};

std::vector<Set> usable_sets() {
  std::vector<Set> sets = {{"baseline", &baseline::table}};
#if defined(MOVA_X86_KERNELS)
  for (const std::string& feature : cpu_features()) {
    if (feature == "avx2") sets.push_back({"avx2", &avx2::table});
    if (feature == "avx512") sets.push_back({"avx512", &avx512::table});
    // Its kernels use what "avx512" stands for, too.
    if (feature == "avx512_bf16" && sets.back().table == &avx512::table) sets.push_back({"avx512_bf16", &avx512_bf16::table});
  }
#endif
  return sets;
}

const std::vector<Set>& sets() {
  static const std::vector<Set> found = usable_sets();
  return found;
}

std::atomic<const Set*>& current() {
  static std::atomic<const Set*> set{&sets().back()};
  return set;
}

}  // namespace

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Set& set : sets()) names.emplace_back(set.name);
  return names;
}

std::string isa() { return current().load()->name; }

void use_isa(std::string name) {
  for (const Set& set : sets()) {
    if (name == set.name) {
      current() = &set;
      return;
    }
  }
  TORCH_CHECK_VALUE(false, "no CPU kernels '", name, "' can run here; this CPU has ", c10::Join(", ", isas()));
}

const KernelTable& kernels() { return *current().load()->table; }

}  // namespace mova::cpu
