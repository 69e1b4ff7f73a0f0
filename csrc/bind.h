// The parts of the Python face, one file per room.
#pragma once

#include <nanobind/nanobind.h>

namespace secateur {

void bind_conv(nanobind::module_& m);
void bind_gate(nanobind::module_& m);
void bind_pool(nanobind::module_& m);
void bind_program(nanobind::module_& m);
void bind_roofs(nanobind::module_& m);
void bind_solve(nanobind::module_& m);

}  // namespace secateur
