// The Python face of sparse matrices and programs. Addresses and lengths come from `secateur.runtime`, which has checked
// the tensors behind them; what streams say is checked here.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "bind.h"
#include "program/linear.h"
#include "program/panel.h"
#include "program/program.h"

namespace nb = nanobind;
using namespace nb::literals;
using secateur::KernelTable;
using secateur::Packed;
using secateur::Place;
using secateur::Program;
using secateur::Step;
using secateur::Word;

namespace {

using Addresses = std::vector<uintptr_t>;

template <typename Pointer>
std::vector<Pointer> pointers(const Addresses& addresses, size_t wanted) {
  if (addresses.size() != wanted) throw std::invalid_argument("program: one address per input and output is needed");
  std::vector<Pointer> all;
  for (uintptr_t address : addresses) all.push_back(reinterpret_cast<Pointer>(address));
  return all;
}

void run(const Program& program, const Addresses& inputs, const Addresses& outputs, size_t samples) {
  const auto in = pointers<const float*>(inputs, program.inputs());
  const auto out = pointers<float*>(outputs, program.outputs());
  const nb::gil_scoped_release released;
  program.run(in.data(), out.data(), samples);
}

std::vector<double> time_steps(const Program& program, const Addresses& inputs, const Addresses& outputs, size_t samples) {
  const auto in = pointers<const float*>(inputs, program.inputs());
  const auto out = pointers<float*>(outputs, program.outputs());
  const nb::gil_scoped_release released;
  return program.time(in.data(), out.data(), samples);
}

// The way that most programs go, without a list.
void run_one(const Program& program, uintptr_t x, uintptr_t y, size_t samples) {
  if (program.inputs() != 1 || program.outputs() != 1) throw std::invalid_argument("program: it has not one input and output");
  const float* const in = reinterpret_cast<const float*>(x);
  float* const out = reinterpret_cast<float*>(y);
  const nb::gil_scoped_release released;
  program.run(&in, &out, samples);
}

Word word_of(size_t inputs) {
  if (inputs != 1 && inputs != 2 && inputs != 4) throw std::invalid_argument("a column has 1, 2 or 4 inputs");
  return inputs == 4 ? Word::quad : inputs == 2 ? Word::pair : Word::single;
}

void bind_packed(nb::module_& m) {
  nb::class_<Packed>(m, "Packed")
      // The owner of the memory lives as long as this.
      .def("__init__", [](Packed* self, const KernelTable& table, nb::handle, const std::string& layout, size_t rows,
                          size_t cols, size_t unit, size_t chunk, size_t block, size_t bits, uintptr_t counts,
                          size_t counts_bytes, uintptr_t index, size_t index_bytes, uintptr_t values,
                          size_t values_length, size_t inputs, uintptr_t scales, uintptr_t sums) {
             const Word word = word_of(inputs);
             new (self) Packed(table, {layout, rows, cols, unit, chunk, block, bits, word},
                               {reinterpret_cast<const void*>(counts), counts_bytes, reinterpret_cast<const void*>(index),
                                index_bytes, reinterpret_cast<const float*>(values), values_length,
                                reinterpret_cast<const float*>(scales), reinterpret_cast<const int32_t*>(sums)});
           }, "table"_a, "owner"_a, "layout"_a, "rows"_a, "cols"_a, "unit"_a, "chunk"_a, "block"_a, "bits"_a, "counts"_a,
           "counts_bytes"_a, "index"_a, "index_bytes"_a, "values"_a, "values_length"_a, "inputs"_a = 1,
           "scales"_a = 0, "sums"_a = 0, nb::keep_alive<1, 3>())
      .def("run", [](std::shared_ptr<const Packed> packed, uintptr_t x, size_t n, uintptr_t y, uintptr_t bias, int activation) {
             secateur::run_linear(std::move(packed), reinterpret_cast<const float*>(x), n, reinterpret_cast<float*>(y),
                                  reinterpret_cast<const float*>(bias), activation);
           }, "x"_a, "n"_a, "y"_a, "bias"_a, "activation"_a, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("runs_single", &Packed::runs_single)
      .def_prop_ro("runs_panels", &Packed::runs_panels);
}

void bind_words(nb::module_& m) {
  nb::class_<secateur::ToGrid, Step>(m, "ToGrid").def(nb::init<const KernelTable&, size_t, size_t, Place, Place>());
  nb::class_<secateur::ToWords, Step>(m, "ToWords")
      .def("__init__", [](secateur::ToWords* self, const KernelTable& table, size_t inputs, size_t features, size_t lanes,
                          const Place& from, const Place& to) {
             new (self) secateur::ToWords(table, word_of(inputs), features, lanes, from, to);
           }, "table"_a, "inputs"_a, "features"_a, "lanes"_a, "from"_a, "to"_a);
  m.def("words_floats", [](size_t inputs, size_t features, size_t lanes) {
    return secateur::grid_floats(word_of(inputs), lanes) + secateur::panel::floats((features + inputs - 1) / inputs, lanes);
  }, "inputs"_a, "features"_a, "lanes"_a);
}

}  // namespace

void secateur::bind_program(nb::module_& m) {
  bind_packed(m);
  nb::enum_<Place::Where>(m, "Where").value("arena", Place::arena).value("input", Place::input).value("output", Place::output);
  nb::class_<Place>(m, "Place").def("__init__", [](Place* self, Place::Where where, size_t at, size_t each) {
    new (self) Place{where, at, each};
  }, "where"_a, "at"_a, "each"_a = 0);
  nb::class_<Step>(m, "Step").def_prop_ro("pieces", &Step::pieces);
  nb::class_<secateur::Linear, Step>(m, "Linear")
      .def("__init__", [](secateur::Linear* self, std::shared_ptr<const Packed> weight, size_t lanes, const Place& x, const Place& y,
                          const Place* residual, uintptr_t bias, int activation, bool rounded) {
             new (self) secateur::Linear(std::move(weight), lanes, x, y, residual, reinterpret_cast<const float*>(bias), activation,
                                         rounded);
           }, "weight"_a, "lanes"_a, "x"_a, "y"_a, "residual"_a.none(), "bias"_a, "activation"_a, "rounded"_a = false);
  nb::class_<ToPanel, Step>(m, "ToPanel").def(nb::init<const KernelTable&, size_t, size_t, Place, Place>());
  nb::class_<FromPanel, Step>(m, "FromPanel").def(nb::init<const KernelTable&, size_t, size_t, Place, Place>());
  nb::class_<Add, Step>(m, "Add")
      .def("__init__", [](Add* self, const KernelTable& table, size_t floats, const Place& x, const Place* other,
                          const Place& y, int activation) {
             new (self) Add(table, floats, x, other, y, activation);
           }, "table"_a, "floats"_a, "x"_a, "other"_a.none(), "y"_a, "activation"_a);
  nb::class_<secateur::LayerNorm, Step>(m, "LayerNorm")
      .def("__init__", [](secateur::LayerNorm* self, const KernelTable& table, size_t features, size_t lanes, const Place& x,
                          const Place& y, uintptr_t scale, uintptr_t shift, float eps) {
             new (self) secateur::LayerNorm(table, features, lanes, x, y, reinterpret_cast<const float*>(scale),
                                            reinterpret_cast<const float*>(shift), eps);
           }, "table"_a, "features"_a, "lanes"_a, "x"_a, "y"_a, "scale"_a, "shift"_a, "eps"_a);
  nb::class_<Program>(m, "Program")
      .def(nb::init<size_t, size_t, std::vector<size_t>, std::vector<size_t>>(), "lanes"_a, "arena"_a, "inputs"_a,
           "outputs"_a)
      .def("add", [](Program& program, std::shared_ptr<Step> step, bool each) { program.add(std::move(step), each); },
           "step"_a, "each"_a = false)
      .def("poison", &Program::poison)
      .def("share", [](Program& program, size_t threads, const std::string& backend, std::vector<double> step_us) {
             if (backend != "own" && backend != "gomp") throw std::invalid_argument("backend: 'own' and 'gomp' are allowed");
             program.share(threads, backend == "own" ? secateur::Backend::own : secateur::Backend::gomp, std::move(step_us));
           }, "threads"_a, "backend"_a, "step_us"_a)
      .def_prop_ro("steps", &Program::steps)
      .def("run", run, "inputs"_a, "outputs"_a, "samples"_a)
      .def("run_one", run_one, "x"_a, "y"_a, "samples"_a)
      .def("time", time_steps, "inputs"_a, "outputs"_a, "samples"_a);
  bind_words(m);
  m.def("panel_floats", &secateur::panel::floats, "features"_a, "lanes"_a);
}
