"""Loads the C++ core, or says once that it is absent; the face of its mask kernels.

Masks are stored one bit per weight: bit ``i`` of byte ``j`` stands for flat element ``8 j + i`` in row-major order
of the parameter's shape, 1 means kept, spare bits are 0. Every function has a torch reference with the same result:
it runs where the core is absent, and for tensors that the core does not take (other devices, other strides).

Environment, read at import:

- ``SECATEUR_ISA=portable|avx2|avx512|avx512vnni|avx512bf16|neon`` forces one instruction set; one that
  this machine lacks is an error.
- ``SECATEUR_REQUIRE_NATIVE=1`` makes an absent core an error, at installation and at import.
- ``SECATEUR_DISABLE_NATIVE=1`` runs the torch references although the core is there.
"""

from __future__ import annotations

from secateur.native.bits import count_bits, pack_bits, unpack_bits
from secateur.native.digits import BINS, count_digits, in_order
from secateur.native.groups import nm_select
from secateur.native.loading import available, isa
from secateur.native.mask_set import MaskSet
from secateur.native.solve import eliminate_columns, elimination_order, refit_rows
from secateur.native.threads import usable_threads

__all__ = [
    "BINS",
    "MaskSet",
    "available",
    "count_bits",
    "count_digits",
    "eliminate_columns",
    "elimination_order",
    "in_order",
    "isa",
    "nm_select",
    "pack_bits",
    "refit_rows",
    "unpack_bits",
    "usable_threads",
]
