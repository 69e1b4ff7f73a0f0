// The Python face of the solvers: rows of a layer in parallel. Addresses come from `secateur.native`, which has checked them.
#include <nanobind/nanobind.h>

#include <atomic>
#include <cstring>
#include <vector>

#include "bind.h"
#include "dispatch.h"
#include "pool/pool.h"
#include "program/scratch.h"

namespace nb = nanobind;
using namespace nb::literals;
using secateur::KernelTable;
using secateur::Pool;

namespace {

template <typename Pointee>
Pointee* at(uintptr_t address) {
  return reinterpret_cast<Pointee*>(address);
}

// Of this thread, at a multiple of 64 bytes.
double* doubles(size_t count) { return reinterpret_cast<double*>(secateur::scratch(2 * count)); }

// work(row) for every row; it must not throw.
template <typename Body>
void for_rows(size_t rows, size_t threads, const Body& body) {
  Pool::instance().parallel_for(
      rows, threads, [](void* context, size_t row) { (*static_cast<const Body*>(context))(row); },
      const_cast<Body*>(&body));
}

// `values`: the right side of all columns, then the solution, 0 where nothing is kept. Returns the first row whose gram
// is not positive definite, or `rows`.
size_t refit_rows(const KernelTable& table, uintptr_t gram, size_t columns, uintptr_t kept, uintptr_t values, size_t rows,
                  size_t threads) {
  std::atomic<size_t> wrong{rows};
  const auto body = [&](size_t row) {
    const uint8_t* mask = at<const uint8_t>(kept) + row * columns;
    double* line = at<double>(values) + row * columns;
    double* scratch = doubles(secateur::refit_scratch(columns) + 2 * columns + 16);
    double* own = scratch + secateur::refit_scratch(columns);
    auto* support = reinterpret_cast<int32_t*>(own + columns + 8);
    size_t n = 0;
    for (size_t k = 0; k < columns; ++k) {
      if (mask[k] != 0) own[n] = line[k], support[n++] = int32_t(k);
    }
    if (!table.refit_row(at<const double>(gram), columns, support, n, own, scratch)) {
      size_t known = wrong.load();
      while (row < known && !wrong.compare_exchange_weak(known, row)) {
      }
      return;
    }
    std::memset(line, 0, columns * sizeof(double));
    for (size_t k = 0; k < n; ++k) line[support[k]] = own[k];
  };
  for_rows(rows, threads, body);
  return wrong.load();
}

void obs_columns(const KernelTable& table, uintptr_t weights, uintptr_t errors, uintptr_t kept, size_t rows,
                 uintptr_t factor, size_t width, size_t keep, size_t of, size_t threads) {
  for_rows(rows, threads, [&](size_t row) {
    const size_t first = row * width;
    table.obs_columns(at<double>(weights) + first, at<double>(errors) + first, at<uint8_t>(kept) + first,
                      at<const double>(factor), width, width, keep, of);
  });
}

void obs_order(const KernelTable& table, uintptr_t inverse, size_t columns, uintptr_t weights, uintptr_t kept,
               size_t rows, size_t keep, size_t of, uintptr_t order, uintptr_t costs, uintptr_t counts, size_t threads) {
  for_rows(rows, threads, [&](size_t row) {
    const size_t first = row * columns;
    double* copy = doubles(columns * columns);
    std::memcpy(copy, at<const double>(inverse), columns * columns * sizeof(double));
    at<int64_t>(counts)[row] = int64_t(table.obs_order(copy, columns, at<double>(weights) + first,
                                                       at<const uint8_t>(kept) + first, keep, of,
                                                       at<int32_t>(order) + first, at<double>(costs) + first));
  });
}

}  // namespace

void secateur::bind_solve(nb::module_& m) {
  using Release = nb::call_guard<nb::gil_scoped_release>;
  m.def("refit_rows", &refit_rows, "table"_a, "gram"_a, "columns"_a, "kept"_a, "values"_a, "rows"_a, "threads"_a,
        Release(), "Solve the kept part of each row; the first row that cannot be solved, or rows.");
  m.def("obs_columns", &obs_columns, "table"_a, "weights"_a, "errors"_a, "kept"_a, "rows"_a, "factor"_a, "width"_a,
        "keep"_a, "of"_a, "threads"_a, Release(), "Eliminate a block of columns in order, in place.");
  m.def("obs_order", &obs_order, "table"_a, "inverse"_a, "columns"_a, "weights"_a, "kept"_a, "rows"_a, "keep"_a, "of"_a,
        "order"_a, "costs"_a, "counts"_a, "threads"_a, Release(), "The order in which greedy elimination removes columns.");
}
