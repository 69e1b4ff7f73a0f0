// Every kernel of every instruction set that this machine runs, against plain loops. No Python, so that it also runs
// cross-compiled under an emulator. Prints one line, "N passed, M failed", and fails if M > 0 or nothing ran.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "driver.h"

using secateur::KernelTable;

namespace {

int passed = 0;
int failed = 0;
uint64_t state = 1;

}  // namespace

void expect(bool ok, const KernelTable& table, const char* kernel, size_t n, const char* what) {
  ok ? ++passed : ++failed;
  if (!ok) std::printf("FAILED %s %s n=%zu: %s\n", secateur::info(table.isa).name, kernel, n, what);
}

uint64_t random_bits() {  // splitmix64
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

namespace {

const size_t sizes[] = {0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 255, 257, 1000, 4097};
constexpr uint8_t guard = 0xa5;

// Bytes with guards on both sides; the payload starts `offset` bytes off an aligned address.
class Guarded {
 public:
  Guarded(size_t bytes, size_t offset) : memory_(bytes + offset + 128, guard), begin_(64 + offset), bytes_(bytes) {}
  uint8_t* data() { return memory_.data() + begin_; }
  bool intact() const {
    for (size_t i = 0; i < memory_.size(); ++i) {
      if ((i < begin_ || i >= begin_ + bytes_) && memory_[i] != guard) return false;
    }
    return true;
  }

 private:
  std::vector<uint8_t> memory_;
  size_t begin_;
  size_t bytes_;
};

std::vector<uint8_t> random_bools(size_t n, unsigned kept_of_10) {
  std::vector<uint8_t> bools(n);
  for (uint8_t& b : bools) b = random_bits() % 10 < kept_of_10;
  return bools;
}

std::vector<uint8_t> plain_pack(const std::vector<uint8_t>& bools) {
  std::vector<uint8_t> bits((bools.size() + 7) / 8, 0);
  for (size_t i = 0; i < bools.size(); ++i) bits[i / 8] = uint8_t(bits[i / 8] | (bools[i] << (i % 8)));
  return bits;
}

void test_bits(const KernelTable& table, size_t n, unsigned kept) {
  const std::vector<uint8_t> bools = random_bools(n, kept);
  std::vector<uint8_t> bits = plain_pack(bools);
  size_t count = 0;
  for (uint8_t b : bools) count += b;
  for (size_t offset : {0, 1, 5}) {
    Guarded packed(bits.size(), offset);
    table.pack(bools.data(), n, packed.data());
    expect(packed.intact(), table, "pack", n, "wrote outside");
    expect(n == 0 || std::memcmp(packed.data(), bits.data(), bits.size()) == 0, table, "pack", n, "wrong bits");
    if (n % 8 != 0) packed.data()[n / 8] |= uint8_t(0xff << (n % 8));  // spare bits must not count
    expect(table.popcount(packed.data(), n) == count, table, "popcount", n, "wrong count");
    Guarded unpacked(n, offset);
    table.unpack(packed.data(), n, unpacked.data());
    expect(unpacked.intact(), table, "unpack", n, "wrote outside");
    expect(n == 0 || std::memcmp(unpacked.data(), bools.data(), n) == 0, table, "unpack", n, "wrong bools");
  }
}

template <typename Element>
void test_apply(const KernelTable& table, apply_fn* apply, const char* kernel, size_t n, unsigned kept) {
  const std::vector<uint8_t> bools = random_bools(n, kept);
  const std::vector<uint8_t> bits = plain_pack(bools);
  for (size_t offset : {0, 1, 3}) {
    Guarded values(n * sizeof(Element), offset * sizeof(Element));
    std::vector<uint8_t> wanted(n * sizeof(Element), 0);
    for (size_t i = 0; i < n; ++i) {
      Element value = Element(random_bits());
      if (i % 5 == 0) value = Element(Element(1) << (8 * sizeof(Element) - 1));  // minus zero
      if (i % 7 == 0) value = Element(~Element(0));                             // a NaN
      std::memcpy(values.data() + i * sizeof(Element), &value, sizeof value);
      if (bools[i]) std::memcpy(wanted.data() + i * sizeof(Element), &value, sizeof value);
    }
    for (const char* pass : {"dirty", "clean"}) {
      apply(values.data(), bits.data(), n);
      expect(values.intact(), table, kernel, n, "wrote outside");
      expect(n == 0 || std::memcmp(values.data(), wanted.data(), wanted.size()) == 0, table, kernel, n, pass);
    }
  }
}

// A single element to clear, wherever it stands, must not be taken for clean memory.
template <typename Element>
void test_one_dirty(const KernelTable& table, apply_fn* apply, const char* kernel) {
  const uint8_t nothing_kept[24] = {};
  for (size_t at = 0; at < 192; ++at) {
    std::vector<Element> values(192, 0);
    values[at] = Element(Element(1) << (8 * sizeof(Element) - 1));  // minus zero
    apply(values.data(), nothing_kept, values.size());
    expect(values == std::vector<Element>(192, 0), table, kernel, at, "one dirty element");
  }
}

std::vector<uint8_t> plain_select(const std::vector<float>& scores, size_t rows, size_t cols, size_t keep, size_t of) {
  std::vector<uint8_t> kept(rows * cols, 1);
  for (size_t start = 0; start < rows * cols; start += cols) {
    for (size_t g = 0; g + of <= cols; g += of) {
      for (size_t go = 0; go < of - keep; ++go) {  // remove the lowest that is left, the first of equals
        size_t lowest = of;
        for (size_t i = 0; i < of; ++i) {
          const size_t at = start + g + i;
          if (kept[at] && (lowest == of || scores[at] < scores[start + g + lowest])) lowest = i;
        }
        kept[start + g + lowest] = 0;
      }
    }
  }
  return kept;
}

void test_nm(const KernelTable& table, size_t rows, size_t cols, size_t keep, size_t of) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float values[] = {-infinity, -1.5f, -0.0f, 0.0f, 1e-42f, 1.0f, 2.0f, infinity};
  std::vector<float> scores(rows * cols);
  for (float& score : scores) score = values[random_bits() % 8];  // few values: many ties
  Guarded kept(rows * cols, 1);
  table.nm_select(scores.data(), rows, cols, keep, of, kept.data());
  const std::vector<uint8_t> wanted = plain_select(scores, rows, cols, keep, of);
  expect(kept.intact(), table, "nm_select", cols, "wrote outside");
  expect(wanted.empty() || std::memcmp(kept.data(), wanted.data(), wanted.size()) == 0, table, "nm_select", cols,
         "wrong choice");
}

// Register i goes from i to i / 8 + 1.75 in three rounds, exact in bf16 too.
void test_roofs(const KernelTable& table) {
  for (const bool pairs : {false, true}) {
    float out[16] = {};
    const uint64_t operations = (pairs ? table.bf16_roof_fma : table.roof_fma)(3, 0.0f, 0.5f, 1.0f, out);
    size_t registers = 1, lanes = 0;
    while (registers < 32 && 1.75 * registers + registers * (registers - 1) / 16.0 != out[0]) ++registers;
    while (lanes < 16 && out[lanes] == out[0]) ++lanes;
    lanes = lanes < 8 ? 4 : lanes < 16 ? 8 : 16;
    expect(registers >= 8 && registers < 32, table, "roof_fma", 3, "wrong sum");
    expect(operations == 3 * registers * lanes * (pairs ? 4 : 2), table, "roof_fma", 3, "wrong count of operations");
  }
  for (size_t n : {256, 512, 4096}) {
    std::vector<float> x(n);
    for (size_t i = 0; i < n; ++i) x[i] = static_cast<float>(i % 64);
    expect(table.roof_read(x.data(), n) == static_cast<float>(n) * 31.5f, table, "roof_read", n, "wrong sum");
  }
}

void test_table(const KernelTable& table) {
  test_one_dirty<uint16_t>(table, table.apply2, "apply2");
  test_one_dirty<uint32_t>(table, table.apply4, "apply4");
  test_one_dirty<uint64_t>(table, table.apply8, "apply8");
  for (size_t n : sizes) {
    for (unsigned kept : {0u, 1u, 5u, 10u}) {
      test_bits(table, n, kept);
      test_apply<uint16_t>(table, table.apply2, "apply2", n, kept);
      test_apply<uint32_t>(table, table.apply4, "apply4", n, kept);
      test_apply<uint64_t>(table, table.apply8, "apply8", n, kept);
    }
  }
  for (size_t of : {1, 2, 3, 4, 5, 8, 16, 32}) {
    for (size_t keep : {size_t(0), size_t(1), of / 2, of}) {
      for (size_t cols : {0, 1, 3, 4, 8, 21, 64, 130}) test_nm(table, 3, cols, keep, of);
    }
  }
}

}  // namespace

int main() {
  for (const secateur::IsaInfo& set : secateur::instruction_sets()) {
    if (!set.available) {
      std::printf("not on this machine: %s (needs %s)\n", set.name, set.features);
      continue;
    }
    const int before = passed + failed;
    test_table(secateur::table(set.name));
    test_solvers(secateur::table(set.name));
    test_spmm(secateur::table(set.name));
    test_roofs(secateur::table(set.name));
    std::printf("%s: %d checks\n", set.name, passed + failed - before);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed > 0 || passed == 0;
}
