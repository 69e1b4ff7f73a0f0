// Layer norm over the features of a panel, sample by sample: (x - mean) / sqrt(variance + eps) * scale + shift.
#pragma once

#include "vectors.h"

namespace {

constexpr size_t norm_run = 96;  // features between two rows of zeros (program/panel.h)

// Calls visit(feature, row) for every row that holds one.
template <typename Visit>
SECATEUR_INLINE void each_feature(size_t features, Visit visit) {
  size_t row = 0;
  for (size_t first = 0; first < features; first += norm_run, ++row) {
    const size_t end = first + norm_run < features ? first + norm_run : features;
    for (size_t feature = first; feature < end; ++feature, ++row) visit(feature, row);
  }
}

// L samples side by side, `width` apart from feature to feature.
template <int L>
SECATEUR_INLINE void norm_samples(const float* x, float* y, size_t features, size_t width, const float* scale,
                                  const float* shift, float eps) {
  Vector<L> sum{}, squares{};
  each_feature(features, [&](size_t, size_t row) { sum += load<L>(x + row * width); });
  const Vector<L> mean = sum / float(features);
  each_feature(features, [&](size_t, size_t row) {
    const Vector<L> centred = load<L>(x + row * width) - mean;
    squares += centred * centred;
  });
  const Vector<L> variance = squares / float(features) + eps;
  Vector<L> factor{};
  for (int i = 0; i < L; ++i) factor[i] = 1.0f / __builtin_sqrtf(variance[i]);
  each_feature(features, [&](size_t feature, size_t row) {
    const float by = scale == nullptr ? 1.0f : scale[feature], plus = shift == nullptr ? 0.0f : shift[feature];
    store<L>(y + row * width, (load<L>(x + row * width) - mean) * (factor * by) + plus);
  });
}

template <int L>
void norm_of(const float* x, float* y, size_t features, size_t width, const float* scale, const float* shift, float eps) {
  if (width >= L) {
    for (size_t lane = 0; lane < width; lane += L) norm_samples<L>(x + lane, y + lane, features, width, scale, shift, eps);
    return;
  }
  // One sample: its features lie side by side.
  double sum = 0, squares = 0;
  each_feature(features, [&](size_t, size_t row) { sum += double(x[row]); });
  const float mean = float(sum / double(features));
  each_feature(features, [&](size_t, size_t row) { squares += double(x[row] - mean) * double(x[row] - mean); });
  const float factor = float(1.0 / __builtin_sqrt(squares / double(features) + double(eps)));
  each_feature(features, [&](size_t feature, size_t row) {
    const float by = scale == nullptr ? 1.0f : scale[feature], plus = shift == nullptr ? 0.0f : shift[feature];
    y[row] = (x[row] - mean) * factor * by + plus;
  });
}

}  // namespace
