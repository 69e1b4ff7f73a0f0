// Solvers of one row of a layer, in double precision. Rows are independent: threads are the caller's business.
#pragma once

#include <stddef.h>
#include <stdint.h>

extern "C" {

// Solves gram[support, support] x = values for x, which takes the place of `values`. `support`: `n` different columns,
// in any order; gram: [columns, columns], symmetric. `scratch`: refit_scratch(n) doubles at a multiple of 64 bytes.
// False where a pivot is not above 1e-13 of its diagonal: the matrix is not positive definite.
typedef bool refit_row_fn(const double* gram, size_t columns, const int32_t* support, size_t n, double* values,
                          double* scratch);

// Eliminates the columns [0, width) of a row in order and carries what each of them gives up over to those behind it
// (SparseGPT). `factor`: [width] rows, `stride` doubles apart, of the upper Cholesky factor of the inverse gram, from the
// block's own diagonal on. `kept`: 0 or 1 per column. With of > 0 it is an output: of every `of` columns the `keep` with
// the largest (weight / factor diagonal)^2 stay, chosen when the first of them is reached; of equal ones the first goes, and
// what is 0 in it beforehand goes before all others; a tail shorter than `of` stays as it is. `errors`: per column what the
// columns behind the block have yet to take up.
typedef void obs_columns_fn(double* weights, double* errors, uint8_t* kept, const double* factor, size_t stride,
                            size_t width, size_t keep, size_t of);

// The order in which greedy elimination removes the columns of one row, and what each removal costs, the rest being
// refitted every time: cost = w^2 / inverse diagonal. `inverse`: [columns, columns] of the gram, destroyed. `weights`:
// destroyed. `kept`: columns that are 0 in it go first, at no cost, and are not in `order`. With of > 0 every `of` columns
// lose at most `of - keep`; a tail shorter than that loses none. Returns how many columns are in `order`.
typedef size_t obs_order_fn(double* inverse, size_t columns, double* weights, const uint8_t* kept, size_t keep,
                            size_t of, int32_t* order, double* costs);
}

namespace secateur {

// Doubles of scratch for a support of n columns: n + 1 rows in panels of 8, each as long as its place in the triangle.
inline size_t refit_scratch(size_t n) {
  const size_t panels = (n + 1 + 7) / 8;
  return 32 * panels * (panels + 1) + 16 * panels;
}

}  // namespace secateur
