// The solvers of rows against residuals and plain loops: sizes around panels of 8, scratch exactly as large as said.
#include <cmath>
#include <cstring>
#include <memory>

#include "driver.h"

using secateur::KernelTable;

namespace {

double number() { return static_cast<double>(random_bits() >> 11) / 4503599627370496.0 - 1.0; }

// X^T X of a few more rows than columns.
std::vector<double> random_gram(size_t columns) {
  std::vector<double> x((columns + 4) * columns), gram(columns * columns, 0.0);
  for (double& value : x) value = number();
  for (size_t t = 0; t < columns + 4; ++t) {
    for (size_t i = 0; i < columns; ++i) {
      for (size_t j = 0; j < columns; ++j) gram[i * columns + j] += x[t * columns + i] * x[t * columns + j];
    }
  }
  for (size_t i = 0; i < columns; ++i) gram[i * columns + i] += 0.5;
  return gram;
}

struct Free {
  void operator()(double* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
};

void test_refit(const KernelTable& table, size_t n) {
  const size_t columns = 2 * n + 1, size = secateur::refit_scratch(n);
  std::vector<double> gram = random_gram(columns), right(n);
  std::vector<int32_t> support(n);
  for (size_t i = 0; i < n; ++i) support[i] = int32_t(2 * i + 1), right[i] = number();
  std::unique_ptr<double[], Free> scratch(static_cast<double*>(::operator new[](size * sizeof(double), std::align_val_t{64})));
  std::vector<double> x = right;
  expect(table.refit_row(gram.data(), columns, support.data(), n, x.data(), scratch.get()), table, "refit_row", n, "refused");
  double worst = 0;
  for (size_t i = 0; i < n; ++i) {
    double off = -right[i];
    for (size_t j = 0; j < n; ++j) off += gram[size_t(support[i]) * columns + size_t(support[j])] * x[j];
    worst = std::fmax(worst, std::fabs(off));
  }
  expect(worst < 1e-9, table, "refit_row", n, "no solution");
  if (n < 2) return;
  support[1] = support[0];  // the same input twice
  x = right;
  expect(!table.refit_row(gram.data(), columns, support.data(), n, x.data(), scratch.get()), table, "refit_row", n, "took a singular gram");
}

void test_columns(const KernelTable& table, size_t width) {
  std::vector<double> factor(width * width, 0.0), weights(width), errors(width), expected;
  std::vector<uint8_t> kept(width);
  for (size_t i = 0; i < width; ++i) {
    for (size_t j = i; j < width; ++j) factor[i * width + j] = i == j ? 2.0 + number() : number();
    weights[i] = number(), kept[i] = random_bits() % 2;
  }
  expected = weights;
  for (size_t i = 0; i < width; ++i) {
    if (kept[i]) continue;
    const double error = expected[i] / factor[i * width + i];
    for (size_t j = i + 1; j < width; ++j) expected[j] -= error * factor[i * width + j];
    expected[i] = 0;
  }
  table.obs_columns(weights.data(), errors.data(), kept.data(), factor.data(), width, width, 0, 0);
  double worst = 0;
  for (size_t i = 0; i < width; ++i) worst = std::fmax(worst, std::fabs(weights[i] - expected[i]) / (1 + std::fabs(expected[i])));
  expect(worst < 1e-9, table, "obs_columns", width, "wrong weights");
  if (width % 4 != 0) return;
  std::memset(kept.data(), 1, width);
  table.obs_columns(weights.data(), errors.data(), kept.data(), factor.data(), width, width, 2, 4);
  for (size_t i = 0; i < width; i += 4) {
    expect(kept[i] + kept[i + 1] + kept[i + 2] + kept[i + 3] == 2, table, "obs_columns", width, "not 2 of 4");
  }
}

void test_order(const KernelTable& table, size_t columns) {
  std::vector<double> inverse = random_gram(columns), weights(columns), costs(columns);
  std::vector<uint8_t> kept(columns, 1), seen(columns, 0);
  std::vector<int32_t> order(columns);
  for (double& value : weights) value = number();
  kept[0] = columns > 1 ? 0 : 1;
  const size_t steps =
      table.obs_order(inverse.data(), columns, weights.data(), kept.data(), 0, 0, order.data(), costs.data());
  expect(steps == columns - (columns > 1 ? 1 : 0), table, "obs_order", columns, "wrong number of steps");
  for (size_t i = 0; i < steps; ++i) seen[size_t(order[i])]++;
  for (size_t i = 0; i < columns; ++i) expect(seen[i] == kept[i], table, "obs_order", columns, "a column twice, or never");
}

}  // namespace

void test_solvers(const KernelTable& table) {
  for (size_t n : {0, 1, 2, 7, 8, 9, 15, 16, 17, 23, 24, 31, 33, 40}) test_refit(table, n);
  for (size_t width : {1, 4, 7, 8, 16, 33, 128}) test_columns(table, width);
  for (size_t columns : {1, 2, 8, 13}) test_order(table, columns);
}
