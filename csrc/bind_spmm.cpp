// The Python face of the sparse matrices. Addresses and lengths come from `secateur.runtime`, which has checked the
// tensors behind them; what the streams say is checked here.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "bind.h"
#include "spmm/packed.h"

namespace nb = nanobind;
using namespace nb::literals;
using secateur::KernelTable;
using secateur::Packed;

void secateur::bind_spmm(nb::module_& m) {
  nb::class_<Packed>(m, "Packed")
      // The owner of the memory lives as long as this.
      .def("__init__", [](Packed* self, const KernelTable& table, nb::handle, const std::string& layout, size_t rows,
                          size_t cols, size_t unit, size_t chunk, size_t block, size_t bits, uintptr_t counts,
                          size_t counts_bytes, uintptr_t index, size_t index_bytes, uintptr_t values,
                          size_t values_length) {
             new (self) Packed(table, {layout, rows, cols, unit, chunk, block, bits},
                               {reinterpret_cast<const void*>(counts), counts_bytes, reinterpret_cast<const void*>(index),
                                index_bytes, reinterpret_cast<const float*>(values), values_length});
           }, "table"_a, "owner"_a, "layout"_a, "rows"_a, "cols"_a, "unit"_a, "chunk"_a, "block"_a, "bits"_a, "counts"_a,
           "counts_bytes"_a, "index"_a, "index_bytes"_a, "values"_a, "values_length"_a, nb::keep_alive<1, 3>())
      .def("run", [](const Packed& packed, uintptr_t x, size_t n, uintptr_t y, uintptr_t bias, int activation) {
             packed.run(reinterpret_cast<const float*>(x), n, reinterpret_cast<float*>(y),
                        reinterpret_cast<const float*>(bias), activation);
           }, "x"_a, "n"_a, "y"_a, "bias"_a, "activation"_a, nb::call_guard<nb::gil_scoped_release>());
}
