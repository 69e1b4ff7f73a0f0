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

// A panel has zeros between its features and behind them.
void begin_panel(const Place& place, float* to, size_t features, size_t lanes) {
  if (place.where == Place::arena) std::fill_n(to, panel::floats(features, lanes), 0.0f);
}

size_t place_of(const Place& place, size_t feature) {
  return place.where == Place::arena ? panel::row_of(feature) : feature;
}

}  // namespace

ToPlanes::ToPlanes(const KernelTable& table, const Planes& planes, Place from, Place to)
    : table_(table), planes_(planes), from_(from), to_(to) {
  check_arena(to);
  if (from.where != Place::input) refuse("row-major pixels come from an input");
}

void ToPlanes::run(const Frame& frame, size_t piece) const {
  const size_t pixels = planes_.height * planes_.width;
  const float* from = from_.read(frame) + piece * pixels;
  float* const plane = to_.write(frame) + piece * planes_.stride;
  planes_.zero_margins(plane, 1, planes_.line());
  for (size_t h = 0; h < planes_.height; ++h, from += planes_.width) {
    float* const row = plane + planes_.first + h * planes_.row;
    if (planes_.lanes == 1) {
      std::memcpy(row, from, planes_.width * sizeof(float));
    } else {
      table_.to_panel(from, frame.samples, planes_.channels * pixels, planes_.width, planes_.lanes, row);
    }
  }
}

FromPlanes::FromPlanes(const KernelTable& table, const Planes& planes, Place from, Place to)
    : table_(table), planes_(planes), from_(from), to_(to) {
  check_arena(from);
  if (to.where == Place::input) refuse("inputs are not written");
}

void FromPlanes::run(const Frame& frame, size_t piece) const {
  const float* const from = from_.read(frame);
  float* const to = to_.write(frame);
  const size_t pixels = planes_.height * planes_.width, all = planes_.channels * pixels, lanes = planes_.lanes;
  const size_t first = lanes > 1 ? piece : 0, end = lanes > 1 ? piece + 1 : planes_.channels;
  if (lanes == 1) {
    begin_panel(to_, to, all, 1);
  } else if (to_.where == Place::arena && end == planes_.channels) {
    std::fill(to + (panel::row_of(all - 1) + 1) * lanes, to + panel::floats(all, lanes), 0.0f);
  }
  for (size_t c = first; c < end; ++c) {
    for (size_t h = 0; h < planes_.height; ++h) {
      const float* row = from + c * planes_.stride + planes_.first + h * planes_.row;
      const size_t feature = c * pixels + h * planes_.width;
      if (to_.where == Place::output) {
        if (lanes == 1) {
          std::memcpy(to + feature, row, planes_.width * sizeof(float));
        } else {
          table_.from_panel(row, frame.samples, all, planes_.width, lanes, to + feature);
        }
        continue;
      }
      for (size_t w = 0; w < planes_.width; ++w, row += lanes) {
        const size_t at = panel::row_of(feature + w);
        std::memcpy(to + at * lanes, row, lanes * sizeof(float));
        if (lanes > 1 && (feature + w + 1) % panel::run == 0) std::fill_n(to + (at + 1) * lanes, lanes, 0.0f);
      }
    }
  }
}

Regroup::Regroup(const KernelTable& table, const Planes& x, const Planes& y, Place from, Place to)
    : table_(table), x_(x), y_(y), from_(from), to_(to) {
  check_arena(from);
  check_arena(to);
  if (x.channels != y.channels || x.height != y.height || x.width != y.width) refuse("unequal sizes");
  if (x.lanes == y.lanes) refuse("16 images lie side by side before or after regrouping");
  const Planes& one = x.lanes == 1 ? x : y;
  if ((x.lanes == 1 ? from : to).each < one.floats()) refuse("every image needs a place of its own");
}

void Regroup::run(const Frame& frame, size_t piece) const {
  const float* from = from_.read(frame) + piece * x_.stride + x_.first;
  float* const plane = to_.write(frame) + piece * y_.stride;
  const bool side_by_side = y_.lanes > 1;
  for (size_t image = 0; image < (side_by_side ? 1 : frame.samples); ++image) {
    y_.zero_margins(plane + image * to_.each, 1, y_.line());
  }
  float* to = plane + y_.first;
  for (size_t h = 0; h < x_.height; ++h, from += x_.row, to += y_.row) {
    if (side_by_side) {
      table_.to_panel(from, frame.samples, from_.each, x_.width, y_.lanes, to);
    } else {
      table_.from_panel(from, frame.samples, to_.each, x_.width, x_.lanes, to);
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
    if (planes.lanes != y.lanes) refuse("unequally many images side by side");
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
  y_.zero_margins(y, 1, y_.line());
  for (size_t h = 0; h < y_.height; ++h) {
    const float* const added = has_other_ ? other + h * other_.row : nullptr;
    table_.add(x + h * x_.row, added, y + y_.first + h * y_.row, y_.line(), activation_);
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
      floats_(y.lanes > 1 ? y.width : rounded(y.width)) {
  check_arena(from);
  check_arena(to);
  if (x.channels != y.channels) refuse("pooling keeps the channels");
  if (x.lanes != y.lanes) refuse("pooling keeps the images side by side");
  if (padding > kernel / 2) refuse("pooling pads by half a window at most");
  Window{kernel, kernel, step, padding, 1, 1}.check(x, y);
  if ((y.height - 1) * step + kernel > x.height + 2 * padding) refuse("the window leaves the value");
  if (x.lanes > 1) return;
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
  y_.zero_margins(y, 1, y_.lanes > 1 ? y_.line() : floats_);
  secateur_pool pool{};
  pool.x = from_.read(frame) + piece * x_.stride + x_.first - padding_ * (x_.row + x_.lanes);
  pool.y = y + y_.first;
  pool.line = scratch(x_.lanes > 1 ? x_.line() : (floats_ + Planes::vector) * step_ + kernel_ + Planes::vector);
  pool.x_row = x_.row;
  pool.y_row = y_.row;
  pool.step = step_;
  pool.kernel = kernel_;
  pool.rows = y_.height;
  pool.floats = floats_;
  pool.height = x_.height;
  pool.width = x_.width;
  pool.padding = padding_;
  pool.inside = inside_.data();
  pool.mask = mask_.data();
  pool.scale = scale_.data();
  pool.average = kind_ != Pooling::maximum;
  pool.count_padding = kind_ == Pooling::average;
  (x_.lanes > 1 ? table_.conv_pool_images : table_.conv_pool)(&pool);
}

GlobalMean::GlobalMean(const KernelTable& table, const Planes& x, Place from, Place to)
    : table_(table), x_(x), from_(from), to_(to) {
  check_arena(from);
  if (to.where == Place::input) refuse("inputs are not written");
  if (x.lanes > 1) check_arena(to);
}

void GlobalMean::run(const Frame& frame, size_t) const {
  const float* plane = from_.read(frame) + x_.first;
  float* const to = to_.write(frame);
  begin_panel(to_, to, x_.channels, x_.lanes);
  const float share = 1.0f / float(x_.height * x_.width);
  for (size_t c = 0; c < x_.channels; ++c, plane += x_.stride) {
    if (x_.lanes > 1) {
      table_.conv_mean_images(plane, x_.height * x_.row / x_.lanes, share, to + place_of(to_, c) * x_.lanes);
      continue;
    }
    to[place_of(to_, c)] = table_.conv_mean(plane, rounded(x_.height * x_.row), share);
  }
}

}  // namespace secateur
