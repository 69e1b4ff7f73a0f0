// Into which tiles a convolution is cut, and where the vectors of a tile go.
#include "sparse_conv.h"

namespace secateur {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("convolution: " + what); }

constexpr size_t slack = 256;  // floats behind the arena that may be read

size_t rounded(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

void Window::check(const Planes& x, const Planes& y) const {
  const auto fits = [this](size_t kernel, size_t in, size_t out) {
    const size_t padded = in + 2 * padding, reach = dilation * (kernel - 1) + 1;
    return padded >= reach && (padded - reach) / step + 1 == out;
  };
  constexpr size_t most = 256;
  const auto small = [](size_t n) { return n >= 1 && n <= most; };
  if (!small(height) || !small(width) || !small(step) || !small(dilation)) {
    refuse("kernel, step and dilation are 1 to 256");
  }
  if (groups < 1 || x.channels % groups != 0 || y.channels % groups != 0) {
    refuse("the groups do not divide the channels");
  }
  if (padding > x.pad) refuse("the value has fewer places of padding than are needed");
  if (!fits(height, x.height, y.height) || !fits(width, x.width, y.width)) {
    refuse("the sizes of x and y do not fit the window");
  }
}

// What a tile needs of a channel: for every column of the kernel, the rows of each phase (a phase of step 2: even rows,
// or odd ones), shifted so that the pixels of a tap stand where its products go.
void SparseConv::cut_copied() {
  shift_ = 3;
  row_ = rounded(y_.width, cut_.lanes);
  const size_t tile = std::min(cut_.tile, y_.height), vectors = row_ / cut_.lanes;
  phase_rows_.assign(window_.step, 0);
  size_t rows = 0;
  for (size_t f = 0; f < window_.step; ++f) {
    for (size_t h = 0; h < window_.height; ++h) {
      if (h * window_.dilation % window_.step == f) phase_rows_[f] = tile + h * window_.dilation / window_.step;
    }
    rows += phase_rows_[f];
  }
  run_ = window_.width * rows * row_;
  width_ = tile * row_;
  if (row_ * tile > 4096) refuse("the tile is too large");
  if (cut_.block > (size_t(1) << 20) / run_) refuse("the block is too large");
  add_shape(tile * vectors);
  for (size_t t = 0; t < tile; ++t) {
    for (size_t v = 0; v < vectors; ++v) {
      shapes_[0].out[t * vectors + v] = int32_t(t * y_.row + v * cut_.lanes);
      for (size_t l = 0; l < cut_.lanes; ++l) {
        shapes_[0].mask[(t * vectors + v) * cut_.lanes + l] = v * cut_.lanes + l < y_.width ? -1 : 0;
      }
    }
  }
  const size_t origin = x_.first - window_.padding * x_.row - window_.padding;
  const size_t last = (y_.height - 1) * window_.step + (window_.height - 1) * window_.dilation;
  const size_t read = origin + last * x_.row + (window_.width - 1) * window_.dilation + row_ * window_.step;
  if (read > x_.stride + slack) refuse("the step is too large for this width");
  for (size_t h = 0; h < y_.height; h += tile) {
    tiles_.push_back({origin + h * window_.step * x_.row, y_.first + h * y_.row, std::min(tile, y_.height - h), 0});
  }
}

// Runs of whole vectors over all pixels and the zeros between their rows.
void SparseConv::cut_direct() {
  shift_ = window_.height == 1 && window_.width == 1 ? 4 : 0;
  const size_t total = rounded((y_.height - 1) * y_.row + y_.width, cut_.lanes) / cut_.lanes;
  const size_t tile = std::min(cut_.tile, total);
  const size_t count = (total + tile - 1) / tile;
  width_ = tile * cut_.lanes;
  const size_t origin = x_.first - window_.padding * x_.row - window_.padding;
  for (size_t i = 0, at = 0; i < count; ++i) {
    const size_t vectors = (total - at + count - i - 1) / (count - i);  // tiles as equal as can be
    add_shape(vectors);
    for (size_t v = 0; v < vectors; ++v) shapes_[i].out[v] = int32_t(v * cut_.lanes);
    for (size_t l = 0; l < vectors * cut_.lanes; ++l) {
      const size_t place = at * cut_.lanes + l;
      shapes_[i].mask[l] = place % y_.row < y_.width && place / y_.row < y_.height ? -1 : 0;
    }
    tiles_.push_back({origin + at * cut_.lanes, y_.first + at * cut_.lanes, vectors, i});
    at += vectors;
  }
}

// Of 16 images side by side: runs of pixels of a row, or, where no zeros stand between the rows of a kernel of 1 x 1, of a whole plane.
void SparseConv::cut_images() {
  shift_ = 4;
  const bool flat = window_.height == 1 && window_.width == 1 && window_.step == 1 && window_.padding == 0 &&
                    x_.row == x_.line() && y_.row == y_.line();
  const size_t rows = flat ? 1 : y_.height, row = flat ? y_.height * y_.width : y_.width;
  const size_t tile = std::min(cut_.tile, row), count = (row + tile - 1) / tile;
  width_ = tile * cut_.lanes;
  run_ = cut_.tile * cut_.lanes;
  if (!cut_.direct && cut_.block > (size_t(1) << 20) / run_) refuse("the block is too large");
  add_shape(tile);
  std::fill(shapes_[0].mask.begin(), shapes_[0].mask.end(), -1);
  for (size_t i = 0; i < tile; ++i) shapes_[0].out[i] = int32_t(i * cut_.lanes);
  const size_t origin = x_.first - window_.padding * (x_.row + x_.lanes);
  for (size_t h = 0; h < rows; ++h) {
    for (size_t i = 0, at = 0; i < count; ++i) {
      const size_t pixels = (row - at + count - i - 1) / (count - i);
      tiles_.push_back({origin + window_.step * (h * x_.row + at * x_.lanes), y_.first + h * y_.row + at * y_.lanes,
                        pixels, 0});
      at += pixels;
    }
  }
}

void SparseConv::add_shape(size_t vectors) {
  shapes_.push_back({std::vector<int32_t>(vectors), std::vector<int32_t>(vectors * cut_.lanes)});
}

}  // namespace secateur
