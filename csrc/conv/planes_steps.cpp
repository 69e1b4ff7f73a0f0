#include "planes_steps.h"

#include <cstring>
#include <limits>

#include "../program/panel.h"
#include "../program/scratch.h"
#include "sparse_conv.h"

namespace secateur {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("planes: " + what); }

void check_arena(Place place) {
  if (place.where != Place::arena) refuse("planes lie in the arena");
}

size_t rounded(size_t n) { return (n + Planes::vector - 1) / Planes::vector * Planes::vector; }

// The panel of one sample has zeros between its features and behind them.
void begin_vector(const Place& place, float* to, size_t features) {
  if (place.where == Place::arena) std::fill_n(to, panel::floats(features, 1), 0.0f);
}

size_t place_of(const Place& place, size_t feature) {
  return place.where == Place::arena ? panel::row_of(feature) : feature;
}

}  // namespace

ToPlanes::ToPlanes(const Planes& planes, Place from, Place to) : planes_(planes), from_(from), to_(to) {
  check_arena(to);
  if (from.where != Place::input) refuse("row-major pixels come from an input");
}

void ToPlanes::run(const Frame& frame, size_t piece) const {
  const float* from = from_.read(frame) + piece * planes_.height * planes_.width;
  float* const plane = to_.write(frame) + piece * planes_.stride;
  planes_.zero_margins(plane, 1, planes_.width);
  for (size_t h = 0; h < planes_.height; ++h, from += planes_.width) {
    std::memcpy(plane + planes_.first + h * planes_.row, from, planes_.width * sizeof(float));
  }
}

FromPlanes::FromPlanes(const Planes& planes, Place from, Place to) : planes_(planes), from_(from), to_(to) {
  check_arena(from);
  if (to.where == Place::input) refuse("inputs are not written");
}

void FromPlanes::run(const Frame& frame, size_t) const {
  const float* const from = from_.read(frame);
  float* const to = to_.write(frame);
  const size_t pixels = planes_.height * planes_.width;
  begin_vector(to_, to, planes_.channels * pixels);
  for (size_t c = 0; c < planes_.channels; ++c) {
    for (size_t h = 0; h < planes_.height; ++h) {
      const float* row = from + c * planes_.stride + planes_.first + h * planes_.row;
      const size_t feature = c * pixels + h * planes_.width;
      if (to_.where == Place::output) {
        std::memcpy(to + feature, row, planes_.width * sizeof(float));
      } else {
        for (size_t w = 0; w < planes_.width; ++w) to[place_of(to_, feature + w)] = row[w];
      }
    }
  }
}

AddPlanes::AddPlanes(const KernelTable& table, const Planes& x, const Planes* other, const Planes& y, Place from,
                     const Place* second, Place to, int activation)
    : table_(table),
      x_(x),
      other_(other == nullptr ? x : *other),
      y_(y),
      from_(from),
      second_(second == nullptr ? Place{} : *second),
      to_(to),
      has_other_(second != nullptr),
      activation_(activation) {
  for (const Place& place : {from_, second_, to_}) check_arena(place);
  for (const Planes& planes : {x_, other_}) {
    if (planes.channels != y.channels || planes.height != y.height || planes.width != y.width) refuse("unequal sizes");
  }
  if (activation < 0 || activation >= secateur_activations) refuse("there is no such activation");
  if ((other == nullptr) != (second == nullptr)) refuse("a second value has a place and a geometry");
}

void AddPlanes::run(const Frame& frame, size_t piece) const {
  const float* const x = from_.read(frame) + piece * x_.stride + x_.first;
  const float* const other = second_.read(frame) + piece * other_.stride + other_.first;
  float* const y = to_.write(frame) + piece * y_.stride;
  if (x_ == y_ && other_ == y_) {  // zeros are added, too: every activation keeps them
    return table_.add(x - x_.first, has_other_ ? other - other_.first : nullptr, y, y_.stride, activation_);
  }
  y_.zero_margins(y, 1, y_.width);
  for (size_t h = 0; h < y_.height; ++h) {
    const float* const added = has_other_ ? other + h * other_.row : nullptr;
    table_.add(x + h * x_.row, added, y + y_.first + h * y_.row, y_.width, activation_);
  }
}

Pool::Pool(const KernelTable& table, Pooling kind, const Planes& x, const Planes& y, size_t kernel, size_t step,
           size_t padding, Place from, Place to)
    : table_(table),
      kind_(kind),
      x_(x),
      y_(y),
      kernel_(kernel),
      step_(step),
      padding_(padding),
      from_(from),
      to_(to),
      floats_(rounded(y.width)) {
  check_arena(from);
  check_arena(to);
  if (x.channels != y.channels) refuse("pooling keeps the channels");
  if (padding > kernel / 2) refuse("pooling pads by half a window at most");
  Window{kernel, kernel, step, padding, 1, 1}.check(x, y);
  if ((y.height - 1) * step + kernel > x.height + 2 * padding) refuse("the window leaves the value");
  const size_t last = x.first + x.height * x.row + padding * x.row + kernel + floats_ * step + 2 * Planes::vector;
  if (last > x.stride + 256) refuse("the step is too large for this width");
  inside_.assign(kernel * floats_, -std::numeric_limits<float>::infinity());
  scale_.assign(floats_, 0.0f);
  mask_.assign(floats_, 0);
  for (size_t column = 0; column < y.width; ++column) {
    mask_[column] = -1;
    size_t pixels = 0;
    for (size_t w = 0; w < kernel; ++w) {
      const size_t at = column * step + w;
      if (at < padding || at >= x.width + padding) continue;
      inside_[w * floats_ + column] = 0.0f;
      ++pixels;
    }
    scale_[column] = 1.0f / float(kind == Pooling::average ? kernel : pixels);
  }
}

void Pool::run(const Frame& frame, size_t piece) const {
  float* const y = to_.write(frame) + piece * y_.stride;
  y_.zero_margins(y, 1, floats_);
  secateur_pool pool{};
  pool.x = from_.read(frame) + piece * x_.stride + x_.first - padding_ * x_.row - padding_;
  pool.y = y + y_.first;
  pool.line = scratch((floats_ + Planes::vector) * step_ + kernel_ + Planes::vector);
  pool.x_row = x_.row;
  pool.y_row = y_.row;
  pool.step = step_;
  pool.kernel = kernel_;
  pool.rows = y_.height;
  pool.floats = floats_;
  pool.height = x_.height;
  pool.padding = padding_;
  pool.inside = inside_.data();
  pool.mask = mask_.data();
  pool.scale = scale_.data();
  pool.average = kind_ != Pooling::maximum;
  pool.count_padding = kind_ == Pooling::average;
  table_.conv_pool(&pool);
}

GlobalMean::GlobalMean(const KernelTable& table, const Planes& x, Place from, Place to)
    : table_(table), x_(x), from_(from), to_(to) {
  check_arena(from);
  if (to.where == Place::input) refuse("inputs are not written");
}

void GlobalMean::run(const Frame& frame, size_t) const {
  const float* plane = from_.read(frame) + x_.first;
  float* const to = to_.write(frame);
  begin_vector(to_, to, x_.channels);
  const float share = 1.0f / float(x_.height * x_.width);
  for (size_t c = 0; c < x_.channels; ++c, plane += x_.stride) {
    to[place_of(to_, c)] = table_.conv_mean(plane, rounded(x_.height * x_.row), share);
  }
}

}  // namespace secateur
