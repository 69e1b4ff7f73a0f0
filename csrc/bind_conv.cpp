// The Python face of the convolutions. Addresses and lengths come from `secateur.runtime`, which has checked the arrays
// behind them; what streams and geometries say is checked here.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "bind.h"
#include "conv/depthwise_conv.h"
#include "conv/planes.h"
#include "conv/planes_steps.h"
#include "conv/sparse_conv.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace secateur;

namespace {

void bind_geometry(nb::module_& m) {
  nb::class_<Planes>(m, "Planes")
      .def(nb::init<size_t, size_t, size_t, size_t, size_t>(), "channels"_a, "height"_a, "width"_a, "pad"_a,
           "lanes"_a = 1)
      .def_ro("row", &Planes::row)
      .def_ro("first", &Planes::first)
      .def_ro("stride", &Planes::stride)
      .def_prop_ro("floats", &Planes::floats);
  nb::class_<Window>(m, "Window")
      .def("__init__", [](Window* self, size_t height, size_t width, size_t step, size_t padding, size_t dilation,
                          size_t groups) {
             new (self) Window{height, width, step, padding, dilation, groups};
           }, "height"_a, "width"_a, "step"_a, "padding"_a, "dilation"_a,
           "groups"_a);
  nb::class_<ConvCut>(m, "ConvCut")
      .def("__init__", [](ConvCut* self, const std::string& layout, size_t unit, bool direct, size_t lanes, size_t tile,
                          size_t block, size_t chunk) {
             new (self) ConvCut{layout, unit, direct, lanes, tile, block, chunk};
           }, "layout"_a, "unit"_a, "direct"_a, "lanes"_a, "tile"_a, "block"_a, "chunk"_a);
}

void bind_sparse(nb::module_& m) {
  nb::class_<SparseConv, Step>(m, "SparseConv")
      // The owner of the streams lives as long as this.
      .def("__init__", [](SparseConv* self, const KernelTable& table, nb::handle, const Planes& x, const Planes& y,
                          const Window& window, const ConvCut& cut, uintptr_t counts, size_t counts_length,
                          uintptr_t offsets, size_t offsets_length, uintptr_t values, size_t values_length,
                          const Place& from, const Place& to, const Place* residual, uintptr_t bias, int activation,
                          bool past) {
             new (self) SparseConv(table, x, y, window, cut,
                                   {reinterpret_cast<const uint16_t*>(counts), counts_length,
                                    reinterpret_cast<const uint16_t*>(offsets), offsets_length,
                                    reinterpret_cast<const float*>(values), values_length},
                                   from, to, residual, reinterpret_cast<const float*>(bias), activation, past);
           }, "table"_a, "owner"_a, "x"_a, "y"_a, "window"_a, "cut"_a, "counts"_a, "counts_length"_a, "offsets"_a,
           "offsets_length"_a, "values"_a, "values_length"_a, "from_"_a, "to"_a, "residual"_a.none(), "bias"_a,
           "activation"_a, "past"_a = false, nb::keep_alive<1, 3>());
}

void bind_depthwise(nb::module_& m) {
  nb::class_<DepthwiseConv, Step>(m, "DepthwiseConv")
      .def("__init__", [](DepthwiseConv* self, const KernelTable& table, const Planes& x, const Planes& y,
                          const Window& window, size_t chunk, uintptr_t weights, size_t length, const Place& from,
                          const Place& to, const Place* residual, uintptr_t bias, int activation) {
             new (self) DepthwiseConv(table, x, y, window, chunk, reinterpret_cast<const float*>(weights), length, from,
                                      to, residual, reinterpret_cast<const float*>(bias), activation);
           }, "table"_a, "x"_a, "y"_a, "window"_a, "chunk"_a, "weights"_a, "length"_a, "from_"_a, "to"_a,
           "residual"_a.none(), "bias"_a, "activation"_a);
}

void bind_around(nb::module_& m) {
  nb::class_<ToPlanes, Step>(m, "ToPlanes")
      .def(nb::init<const KernelTable&, const Planes&, Place, Place>(), "table"_a, "planes"_a, "from_"_a, "to"_a);
  nb::class_<FromPlanes, Step>(m, "FromPlanes")
      .def(nb::init<const KernelTable&, const Planes&, Place, Place>(), "table"_a, "planes"_a, "from_"_a, "to"_a);
  nb::class_<Regroup, Step>(m, "Regroup")
      .def(nb::init<const KernelTable&, const Planes&, const Planes&, Place, Place>(), "table"_a, "x"_a, "y"_a, "from_"_a,
           "to"_a);
  nb::class_<AddPlanes, Step>(m, "AddPlanes")
      .def("__init__", [](AddPlanes* self, const KernelTable& table, const Planes& x, const Planes* other,
                          const Planes& y, const Place& from, const Place* second, const Place& to, int activation) {
             new (self) AddPlanes(table, x, other, y, from, second, to, activation);
           }, "table"_a, "x"_a, "other"_a.none(), "y"_a, "from_"_a, "second"_a.none(), "to"_a, "activation"_a);
  nb::enum_<Pooling>(m, "Pooling")
      .value("maximum", Pooling::maximum)
      .value("average", Pooling::average)
      .value("average_pixels", Pooling::average_pixels);
  nb::class_<Pool, Step>(m, "Pool")
      .def(nb::init<const KernelTable&, Pooling, const Planes&, const Planes&, size_t, size_t, size_t, Place, Place>(),
           "table"_a, "kind"_a, "x"_a, "y"_a, "kernel"_a, "step"_a, "padding"_a, "from_"_a, "to"_a);
  nb::class_<GlobalMean, Step>(m, "GlobalMean")
      .def(nb::init<const KernelTable&, const Planes&, Place, Place>(), "table"_a, "x"_a, "from_"_a, "to"_a);
}

}  // namespace

void secateur::bind_conv(nb::module_& m) {
  bind_geometry(m);
  bind_sparse(m);
  bind_depthwise(m);
  bind_around(m);
}
