// Where the features of a panel lie: feature-major [rows][lanes], a row of zeros after every 96 features and after the
// last one. The layout `even` sends the slots of rows that ran out of weights there, and a K-block always ends with one.
// Features are written in groups of 16, so the last run is padded to that with zeros.
#pragma once

#include <cstddef>

namespace secateur::panel {

constexpr size_t run = 96;
constexpr size_t tile = 16;
constexpr size_t slack = 64;  // floats that may be read behind the end (a window of ell)

constexpr size_t row_of(size_t feature) { return feature + feature / run; }

constexpr size_t runs(size_t features) { return (features + run - 1) / run; }

// How many rows a weight's columns span: every run of features and its zero.
constexpr size_t columns(size_t features) { return features + runs(features); }

constexpr size_t padded(size_t features) { return (features + tile - 1) / tile * tile; }

// Rows that the writer of a value of so many features fills.
constexpr size_t rows(size_t features) { return features == 0 ? 1 : row_of(padded(features) - 1) + 2; }

constexpr size_t floats(size_t features, size_t lanes) { return rows(features) * lanes + slack; }

}  // namespace secateur::panel
