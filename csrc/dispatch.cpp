#include "dispatch.h"

#include <cstdlib>
#include <sstream>
#include <stdexcept>

namespace secateur {
namespace {

// The feature must be a literal for the compiler, hence the chain. A name that is missing here counts as absent.
bool cpu_has(const std::string& feature) {
#if defined(__x86_64__)
  if (feature == "avx2") return __builtin_cpu_supports("avx2");
  if (feature == "popcnt") return __builtin_cpu_supports("popcnt");
  if (feature == "fma") return __builtin_cpu_supports("fma");
  if (feature == "avx512f") return __builtin_cpu_supports("avx512f");
  if (feature == "avx512bw") return __builtin_cpu_supports("avx512bw");
  if (feature == "avx512vl") return __builtin_cpu_supports("avx512vl");
  if (feature == "avx512vnni") return __builtin_cpu_supports("avx512vnni");
  if (feature == "avx512bf16") return __builtin_cpu_supports("avx512bf16");
#elif defined(__aarch64__)
  if (feature == "neon") return true;
#endif
  return false;
}

bool cpu_has_all(const char* features) {
  std::istringstream words{features};
  for (std::string word; words >> word;) {
    if (!cpu_has(word)) return false;
  }
  return true;
}

std::vector<IsaInfo> list_instruction_sets() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  return {
#define SECATEUR_ISA(isa, architecture, flags, features) {Isa::isa, #isa, features, cpu_has_all(features)},
#include "kernels.def"
  };
}

bool has_all(const char* features, const char* wanted) {
  std::istringstream words{wanted};
  for (std::string word; words >> word;) {
    if ((" " + std::string(features) + " ").find(" " + word + " ") == std::string::npos) return false;
  }
  return true;
}

// Later sets overwrite what earlier ones left.
KernelTable build(Isa wanted) {
  KernelTable table{};
#define SECATEUR_KERNEL(kernel, set) \
  if (Isa::set <= wanted && has_all(info(wanted).features, info(Isa::set).features)) table.kernel = secateur_##kernel##_##set;
#include "kernels.def"
  table.isa = wanted;
  return table;
}

std::vector<KernelTable> build_all() {
  std::vector<KernelTable> tables;
  for (const IsaInfo& set : instruction_sets()) tables.push_back(build(set.isa));
  return tables;
}

const KernelTable& table_of(Isa isa) {
  static const std::vector<KernelTable> tables = build_all();
  return tables[static_cast<size_t>(isa)];
}

std::string available_names() {
  std::string names;
  for (const IsaInfo& set : instruction_sets()) {
    if (set.available) names += (names.empty() ? "" : ", ") + std::string(set.name);
  }
  return names;
}

}  // namespace

const std::vector<IsaInfo>& instruction_sets() {
  static const std::vector<IsaInfo> sets = list_instruction_sets();
  return sets;
}

const std::vector<KernelInfo>& kernels() {
  static const std::vector<KernelInfo> list = {
#define SECATEUR_KERNEL(kernel, isa) {#kernel, Isa::isa},
#include "kernels.def"
  };
  return list;
}

const IsaInfo& info(Isa isa) { return instruction_sets()[static_cast<size_t>(isa)]; }

const KernelTable& table(const std::string& isa) {
  for (const IsaInfo& set : instruction_sets()) {
    if (isa == set.name && set.available) return table_of(set.isa);
  }
  throw std::runtime_error("instruction set '" + isa + "' is not available here; available: " + available_names());
}

const KernelTable& choose() {
  const char* forced = std::getenv("SECATEUR_ISA");
  if (forced != nullptr && *forced != '\0') {
    try {
      return table(forced);
    } catch (const std::runtime_error& error) {
      throw std::runtime_error("SECATEUR_ISA: " + std::string(error.what()));
    }
  }
  Isa best = Isa::portable;
  for (const IsaInfo& set : instruction_sets()) {
    if (set.available) best = set.isa;  // they stand in rising order of preference
  }
  return table_of(best);
}

}  // namespace secateur
