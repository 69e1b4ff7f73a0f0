// The products: SECATEUR_PRODUCTS(prefix, isa, L, WIDE, Math, ell), L words in a vector, tiles of up to WIDE vectors,
// and ell<Math, L> to run ell. The file has a Square (layout.h).
#pragma once

#include "ell.h"
#include "panels.h"
#include "single.h"

#define SECATEUR_PRODUCTS(prefix, isa, L, WIDE, Math, ell)                                                             \
  extern "C" {                                                                                                         \
  void secateur_##prefix##spmm_rows8_##isa(const secateur_stream* s, const secateur_panel* p) {                        \
    rows_of<Math, L, WIDE, uint8_t>(s, p);                                                                             \
  }                                                                                                                    \
  void secateur_##prefix##spmm_rows16_##isa(const secateur_stream* s, const secateur_panel* p) {                       \
    rows_of<Math, L, WIDE, uint16_t>(s, p);                                                                            \
  }                                                                                                                    \
  void secateur_##prefix##spmm_even8_##isa(const secateur_stream* s, const secateur_panel* p) {                        \
    even_of<Math, L, WIDE, uint8_t>(s, p);                                                                             \
  }                                                                                                                    \
  void secateur_##prefix##spmm_even16_##isa(const secateur_stream* s, const secateur_panel* p) {                       \
    even_of<Math, L, WIDE, uint16_t>(s, p);                                                                            \
  }                                                                                                                    \
  void secateur_##prefix##spmm_csr_##isa(const secateur_stream* s, const secateur_panel* p) {                          \
    csr_of<Math, L, WIDE>(s, p);                                                                                       \
  }                                                                                                                    \
  void secateur_##prefix##spmm_blocks8_##isa(const secateur_stream* s, const secateur_panel* p) {                      \
    blocks_of<Math, L, WIDE, uint8_t, Square>(s, p);                                                                   \
  }                                                                                                                    \
  void secateur_##prefix##spmm_blocks16_##isa(const secateur_stream* s, const secateur_panel* p) {                     \
    blocks_of<Math, L, WIDE, uint16_t, Square>(s, p);                                                                  \
  }                                                                                                                    \
  void secateur_##prefix##spmv_ell_##isa(const secateur_stream* s, const secateur_panel* p) {                          \
    ell_of<ell<Math, L>>(s, p);                                                                                        \
  }                                                                                                                    \
  void secateur_##prefix##spmv_csr_##isa(const secateur_stream* s, const secateur_panel* p) {                          \
    csr_single<Math, L>(s, p);                                                                                         \
  }                                                                                                                    \
  void secateur_##prefix##spmv_blocks8_##isa(const secateur_stream* s, const secateur_panel* p) {                      \
    blocks_single<Math, L, uint8_t>(s, p);                                                                             \
  }                                                                                                                    \
  void secateur_##prefix##spmv_blocks16_##isa(const secateur_stream* s, const secateur_panel* p) {                     \
    blocks_single<Math, L, uint16_t>(s, p);                                                                            \
  }                                                                                                                    \
  }
