// The Python face of the core; nanobind is known to bind*.cpp alone. Single tensors arrive as addresses that
// `secateur.native` has checked (an ndarray argument costs 2.3 us each, an integer 0.02). The tensors of a MaskTable are
// read here: in a training step Python's own code is cold in the caches, and asking each tensor five questions in Python
// took longer than masking it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "bind.h"
#include "dispatch.h"
#include "exchange.h"

namespace nb = nanobind;
using namespace nb::literals;
using secateur::KernelTable;

namespace {

template <typename Pointee>
Pointee* at(uintptr_t address) {
  return reinterpret_cast<Pointee*>(address);
}

apply_fn* apply_of(const KernelTable& table, size_t itemsize) {
  switch (itemsize) {
    case 2: return table.apply2;
    case 4: return table.apply4;
    case 8: return table.apply8;
  }
  throw std::invalid_argument("elements of 2, 4 or 8 bytes are allowed");
}

// The masks of a model: where their bits lie and how large the tensors are. One call masks all tensors.
class MaskTable {
 public:
  MaskTable(const KernelTable& table, const std::vector<uintptr_t>& bits, const std::vector<std::vector<int64_t>>& shapes)
      : table_(table) {
    if (bits.size() != shapes.size()) throw std::invalid_argument("one shape per mask is needed");
    for (size_t i = 0; i < bits.size(); ++i) {
      size_t numel = 1;
      for (int64_t length : shapes[i]) numel *= static_cast<size_t>(length);
      masks_.push_back({at<const uint8_t>(bits[i]), numel, shapes[i]});
    }
  }

  // Memory that Python has checked; address 0 leaves that mask out.
  void apply_addresses(nb::list addresses, size_t itemsize) const {
    if (addresses.size() != masks_.size()) throw std::invalid_argument("one address per mask is needed");
    std::vector<Job> jobs;
    for (size_t i = 0; i < masks_.size(); ++i) {
      jobs.push_back({apply_of(table_, itemsize), at<void>(nb::cast<uintptr_t>(addresses[i])), &masks_[i]});
    }
    run(jobs);
  }

  // Tensors or None. Those that the kernels cannot take are left alone: `check(rest)` may refuse them by raising, before
  // anything is changed, and the pairs (index, tensor) are returned. `touched` hears of the others afterwards.
  nb::list apply(nb::list tensors, nb::capsule exchange, nb::frozenset types, nb::callable check, nb::callable touched) const {
    if (tensors.size() != masks_.size()) throw std::invalid_argument("one tensor per mask is needed");
    const auto* table = static_cast<const secateur::DlExchange*>(exchange.data("dlpack_exchange_api"));
    nb::list rest, others;
    std::vector<Job> jobs;
    jobs.reserve(masks_.size());
    for (size_t i = 0; i < masks_.size(); ++i) {
      nb::handle tensor = tensors[i];
      if (tensor.is_none()) continue;
      secateur::DlTensor view;
      if (read(*table, tensor, types, view) && secateur::fits(view, masks_[i].shape)) {
        jobs.push_back({apply_of(table_, view.dtype.bits / 8), static_cast<char*>(view.data) + view.byte_offset, &masks_[i]});
      } else {
        rest.append(nb::make_tuple(i, tensor));
      }
    }
    if (rest.size() > 0) check(rest);
    run(jobs);
    if (jobs.size() == masks_.size()) {
      touched(tensors);
    } else if (!jobs.empty()) {
      for (const Job& job : jobs) others.append(tensors[size_t(job.mask - masks_.data())]);
      touched(others);
    }
    return rest;
  }

 private:
  struct Mask {
    const uint8_t* bits;
    size_t numel;
    std::vector<int64_t> shape;
  };
  struct Job {
    apply_fn* run;
    void* data;
    const Mask* mask;
  };

  // False for subclasses, whose memory may not be what it seems, and for what DLPack refuses (sparse, conjugated).
  static bool read(const secateur::DlExchange& exchange, nb::handle tensor, nb::frozenset types, secateur::DlTensor& view) {
    if (!types.contains(tensor.type())) return false;
    if (exchange.tensor_from_object(tensor.ptr(), &view) == 0) return true;
    PyErr_Clear();
    return false;
  }

  static void run(const std::vector<Job>& jobs) {
    nb::gil_scoped_release release;
    for (const Job& job : jobs) {
      if (job.data != nullptr) job.run(job.data, job.mask->bits, job.mask->numel);
    }
  }

  const KernelTable& table_;
  std::vector<Mask> masks_;
};

// Whether this exchange table is one that we can read.
bool readable(nb::capsule exchange) {
  const auto* table = static_cast<const secateur::DlExchange*>(exchange.data("dlpack_exchange_api"));
  return table->header.major == 1 && table->tensor_from_object != nullptr;
}

nb::list list_kernels() {
  nb::list lines;
  for (const secateur::KernelInfo& line : secateur::kernels()) {
    const secateur::IsaInfo& set = secateur::info(line.isa);
    lines.append(nb::make_tuple(line.kernel, set.name, set.features, set.available));
  }
  return lines;
}

void bind_table(nb::module_& m) {
  using Release = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<KernelTable>(m, "KernelTable")
      .def_prop_ro("isa", [](const KernelTable& t) { return secateur::info(t.isa).name; })
      .def("pack", [](const KernelTable& t, uintptr_t bools, size_t n,
                      uintptr_t bits) { t.pack(at<const uint8_t>(bools), n, at<uint8_t>(bits)); },
           "bools"_a, "n"_a, "bits"_a, Release())
      .def("unpack", [](const KernelTable& t, uintptr_t bits, size_t n,
                        uintptr_t bools) { t.unpack(at<const uint8_t>(bits), n, at<uint8_t>(bools)); },
           "bits"_a, "n"_a, "bools"_a, Release())
      .def("popcount", [](const KernelTable& t, uintptr_t bits,
                          size_t n) { return t.popcount(at<const uint8_t>(bits), n); },
           "bits"_a, "n"_a, Release())
      .def("apply", [](const KernelTable& t, uintptr_t data, size_t itemsize, uintptr_t bits,
                       size_t n) { apply_of(t, itemsize)(at<void>(data), at<const uint8_t>(bits), n); },
           "data"_a, "itemsize"_a, "bits"_a, "n"_a, Release())
      .def("nm_select", [](const KernelTable& t, uintptr_t scores, size_t rows, size_t cols, size_t keep, size_t of,
                           uintptr_t kept) {
             if (of == 0 || keep > of) throw std::invalid_argument("keep of `of` with 0 <= keep <= of, of >= 1");
             t.nm_select(at<const float>(scores), rows, cols, keep, of, at<uint8_t>(kept));
           }, "scores"_a, "rows"_a, "cols"_a, "keep"_a, "of"_a, "kept"_a, Release())
      .def("digits", [](const KernelTable& t, uintptr_t values, size_t itemsize, size_t n, int shift, int64_t prefix,
                        uintptr_t counts) {
             if (itemsize != 4 && itemsize != 8) throw std::invalid_argument("floats of 4 or 8 bytes are allowed");
             if (shift < 0 || shift % 16 != 0 || size_t(shift) + 16 > 8 * itemsize) {
               throw std::invalid_argument("shift: 0, 16 and so on, below the size of the numbers");
             }
             digits_fn* run = itemsize == 4 ? t.digits4 : t.digits8;
             return run(at<const void>(values), n, shift, prefix, at<uint64_t>(counts));
           }, "values"_a, "itemsize"_a, "n"_a, "shift"_a, "prefix"_a, "counts"_a, Release());
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "C++ core of secateur: kernels for masks and sparse matrices, chosen for this CPU at import (SECATEUR_ISA forces one set).";
  // After an error the traceback keeps objects until the interpreter ends; that is nothing to print reports about.
  nb::set_leak_warnings(false);
  bind_table(m);
  secateur::bind_pool(m);
  secateur::bind_program(m);
  secateur::bind_conv(m);
  secateur::bind_gate(m);
  secateur::bind_roofs(m);
  secateur::bind_solve(m);
  nb::class_<MaskTable>(m, "MaskTable")
      .def(nb::init<const KernelTable&, const std::vector<uintptr_t>&, const std::vector<std::vector<int64_t>>&>(),
           "table"_a, "bits"_a, "shapes"_a)
      .def("apply_addresses", &MaskTable::apply_addresses, "addresses"_a, "itemsize"_a);
  // Not a method: around its graph breaks Dynamo (torch 2.13) calls methods of extension types without their `self`.
  m.def("apply_masks", [](const MaskTable& table, nb::list tensors, nb::capsule exchange, nb::frozenset types,
                          nb::callable check,
                          nb::callable touched) { return table.apply(tensors, exchange, types, check, touched); },
        "table"_a, "tensors"_a, "exchange"_a, "types"_a, "check"_a, "touched"_a,
        "Mask tensors in place; returns the (index, tensor) pairs that the kernels cannot take.");
  m.def("readable", &readable, "exchange"_a);
  m.def("kernels", &list_kernels, "Every kernel: (name, instruction set, CPU features needed, available here).");
  m.def("table", &secateur::table, "isa"_a, nb::rv_policy::reference, "The kernels of one instruction set.");
  m.attr("active") = nb::cast(&secateur::choose(), nb::rv_policy::reference);
}
