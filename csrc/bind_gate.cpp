// The way of small calls. A tensor is looked at once, by DLPack's table; its result is made like one that was kept as a
// pattern; then the core runs. What does not fit in any way is left to Python, which does it the long way or says why not.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <stdexcept>

#include "bind.h"
#include "exchange.h"
#include "program/linear.h"
#include "program/program.h"

namespace nb = nanobind;
using namespace nb::literals;
using secateur::DlTensor;

namespace {

class Gate {
 public:
  static constexpr size_t most = 16;  // samples

  // like: torch.empty_like; sample: axes of an input after the first one.
  Gate(nb::capsule exchange, nb::frozenset types, nb::callable like, std::vector<int64_t> sample)
      : table_(*static_cast<const secateur::DlExchange*>(exchange.data("dlpack_exchange_api"))),
        exchange_(std::move(exchange)),
        types_(std::move(types)),
        like_(std::move(like)),
        gradients_(nb::steal<nb::str>(PyUnicode_InternFromString("requires_grad"))),
        shape_(std::move(sample)) {
    shape_.insert(shape_.begin(), 0);
  }

  // From now on so many samples go through `runner`, a Program or a Packed, and their results are like `pattern`.
  void learn(size_t samples, nb::object runner, nb::object pattern) {
    if (samples < 1 || samples > most) throw std::invalid_argument("gate: 1 to 16 samples are for it");
    const secateur::Program* program = nb::isinstance<secateur::Program>(runner) ? nb::inst_ptr<secateur::Program>(runner) : nullptr;
    const secateur::Packed* packed = nb::isinstance<secateur::Packed>(runner) ? nb::inst_ptr<secateur::Packed>(runner) : nullptr;
    if (program != nullptr && (program->inputs() != 1 || program->outputs() != 1)) {
      throw std::invalid_argument("gate: programs with one input and one output are for it");
    }
    ways_[samples] = {std::move(runner), std::move(pattern), program, packed};
  }

  nb::object run(nb::handle x) {
    Call call;
    if (!prepare(x, call) || call.way.program == nullptr) return nb::none();
    {
      const nb::gil_scoped_release released;
      call.way.program->run(&call.x, &call.to, call.samples);
    }
    return std::move(call.y);
  }

  // bias: a vector of `rows` or None.
  nb::object multiply(nb::handle x, nb::handle bias, int activation) {
    Call call;
    if (!prepare(x, call) || call.way.packed == nullptr) return nb::none();
    // Not its owner: `call` is.
    const std::shared_ptr<const secateur::Packed> packed(std::shared_ptr<void>(), call.way.packed);
    const float* added = nullptr;
    if (!bias.is_none()) {
      const std::vector<int64_t> rows{int64_t(packed->rows())};
      DlTensor view;
      if (!floats(bias, view, rows)) return nb::none();
      added = first_of(view);
    }
    {
      const nb::gil_scoped_release released;
      secateur::run_linear(packed, call.x, call.samples, call.to, added, activation);
    }
    return std::move(call.y);
  }

 private:
  struct Way {
    nb::object runner, pattern;
    const secateur::Program* program = nullptr;  // one of them
    const secateur::Packed* packed = nullptr;
  };
  struct Call {
    Way way;  // a copy: what runs stays alive, whatever another thread does meanwhile
    nb::object y;
    const float* x;
    float* to;
    size_t samples;
  };

  // Subclasses have memory that may not be what it seems.
  bool read(nb::handle tensor, DlTensor& view) const {
    if (!types_.contains(tensor.type())) return false;
    if (table_.tensor_from_object(tensor.ptr(), &view) == 0) return true;
    PyErr_Clear();
    return false;
  }

  bool floats(nb::handle tensor, DlTensor& view, const std::vector<int64_t>& shape) const {
    constexpr uint8_t floating = 2;
    return read(tensor, view) && view.dtype.code == floating && view.dtype.bits == 32 && secateur::fits(view, shape);
  }

  static float* first_of(const DlTensor& view) {
    return reinterpret_cast<float*>(static_cast<char*>(view.data) + view.byte_offset);
  }

  bool prepare(nb::handle x, Call& call) {
    DlTensor view;
    if (!read(x, view) || view.ndim < 1 || view.shape[0] < 1 || view.shape[0] > int64_t(most)) return false;
    call.samples = size_t(view.shape[0]);
    const Way& way = ways_[call.samples];
    if (!way.runner.is_valid()) return false;
    std::vector<int64_t>& shape = shape_;  // under the lock of the interpreter
    shape[0] = view.shape[0];
    if (!floats(x, view, shape) || nb::cast<bool>(x.attr(gradients_))) return false;
    call.x = first_of(view);
    call.way = way;
    call.y = like_(way.pattern);
    if (!read(call.y, view)) return false;
    call.to = first_of(view);
    return true;
  }

  const secateur::DlExchange& table_;
  nb::capsule exchange_;
  nb::frozenset types_;
  nb::callable like_;
  nb::str gradients_;
  std::vector<int64_t> shape_;
  std::array<Way, most + 1> ways_;
};

}  // namespace

void secateur::bind_gate(nb::module_& m) {
  nb::class_<Gate>(m, "Gate")
      .def(nb::init<nb::capsule, nb::frozenset, nb::callable, std::vector<int64_t>>(), "exchange"_a, "types"_a, "like"_a,
           "sample"_a)
      .def("learn", &Gate::learn, "samples"_a, "runner"_a, "pattern"_a)
      .def("run", &Gate::run, "x"_a.none())
      .def("multiply", &Gate::multiply, "x"_a.none(), "bias"_a.none(), "activation"_a)
      .def_ro_static("most", &Gate::most);
}
