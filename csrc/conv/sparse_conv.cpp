#include "sparse_conv.h"

#include "../program/scratch.h"

namespace secateur {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("convolution: " + what); }

size_t rounded(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

SparseConv::SparseConv(const KernelTable& table, const Planes& x, const Planes& y, const Window& window,
                       const ConvCut& cut, const ConvStreams& streams, Place from, Place to, const Place* residual,
                       const float* bias, int activation, bool past)
    : table_(table),
      x_(x),
      y_(y),
      window_(window),
      cut_(cut),
      from_(from),
      to_(to),
      residual_(residual == nullptr ? Place{} : *residual),
      has_residual_(residual != nullptr),
      activation_(activation),
      past_(past) {
  window.check(x, y);
  cut_.block = std::min(cut_.block, inputs());
  choose_kernel();
  check();
  if (bias != nullptr) bias_.assign(bias, bias + y.channels);
  if (x_.lanes > 1) {
    cut_images();
  } else {
    cut_.direct ? cut_direct() : cut_copied();
  }
  walk(streams);
}

void SparseConv::choose_kernel() {
  if (cut_.layout == "blocks") {
    kernel_ = table_.conv_blocks;
  } else if (cut_.layout == "rows") {
    kernel_ = table_.conv_rows;
  } else if (cut_.layout == "even") {
    kernel_ = table_.conv_even;
  } else {
    refuse("layout '" + cut_.layout + "' is none of blocks, rows, even");
  }
  const bool fits = cut_.unit == 4 || (cut_.unit == 2 && cut_.layout != "even") ||
                    (cut_.unit == 1 && cut_.layout == "blocks");
  if (!fits) refuse("groups of " + std::to_string(cut_.unit) + " output channels do not fit this layout");
}

void SparseConv::check() const {
  if (activation_ < 0 || activation_ >= secateur_activations) refuse("there is no such activation");
  if (from_.where != Place::arena || to_.where != Place::arena || residual_.where != Place::arena) {
    refuse("planes lie in the arena");
  }
  if (cut_.lanes != 8 && cut_.lanes != 16) refuse("vectors have 8 or 16 lanes");
  if (past_ && (x_.lanes == 1 || has_residual_ || to_.at % Planes::vector != 0)) {
    refuse("results of 16 images side by side go past the caches, whole cache lines without a residual");
  }
  const bool whole = cut_.chunk >= 1 && cut_.chunk <= 32768 && cut_.chunk % cut_.unit == 0;
  if (cut_.tile < 1 || cut_.tile > 64 || cut_.block < 1 || !whole) refuse("tile, block and chunk do not fit");
  if (x_.lanes != y_.lanes) refuse("x and y have as many images side by side");
  if (x_.lanes > 1) {
    if (cut_.lanes != x_.lanes) refuse("16 images side by side are read 16 lanes at once");
    const bool copied = window_.height == 1 && window_.width == 1;
    if (!cut_.direct && !copied) refuse("16 images side by side are read where they are, but by a kernel of 1 x 1");
    if (cut_.direct && window_.step > 2 && cut_.tile > 1) {
      refuse("with a step above 2, tiles of 16 images read where they are are one pixel");
    }
    return;
  }
  if (has_residual_ && residual_.at == to_.at) refuse("images one after another are not laid over their residual");
  if (cut_.direct && (window_.step != 1 || x_.row != y_.row)) refuse("direct needs step 1 and equal rows of x and y");
}

// The first offset that no stream of this block may have.
size_t SparseConv::limit_of(size_t block) const {
  const size_t n = inputs_of(block);
  if (!cut_.direct) return n * run_ - width_ + 1;
  const size_t last = (window_.height - 1) * x_.row + (window_.width - 1) * x_.lanes;  // tap
  return (n - 1) * x_.stride + window_.dilation * last + 1;
}

// Of one group's counts: channels that stand in more than one group are refused.
SparseConv::Taken SparseConv::taken_of(const uint16_t* count, std::vector<bool>& seen) const {
  const auto see = [&seen](size_t name) {
    if (name >= seen.size() || seen[name]) refuse("every group of output channels stands once in a block");
    seen[name] = true;
  };
  Taken taken{0, 0};
  if (cut_.layout == "even") {
    taken.offsets = size_t(4) * count[0];
    for (size_t r = 0; r < 4; ++r) {
      see(count[1 + 2 * r]);
      taken.offsets += count[2 + 2 * r];
    }
    taken.values = taken.offsets;
    return taken;
  }
  see(count[0]);
  for (size_t p = 1; p < header(); ++p) {
    taken.offsets += count[p];
    size_t rows = cut_.unit;
    if (cut_.layout == "rows") rows = (p & 1) + (p >> 1 & 1) + (p >> 2 & 1) + (p >> 3 & 1);
    taken.values += rows * count[p];
  }
  return taken;
}

void SparseConv::walk(const ConvStreams& streams) {
  size_t counts = 0, offsets = 0, values = 0;
  for (size_t piece = 0; piece < window_.groups * chunks(); ++piece) {
    const size_t groups = (outputs_of(piece % chunks()) + cut_.unit - 1) / cut_.unit;
    for (size_t block = 0; block < blocks(); ++block) {
      const size_t limit = limit_of(block);
      streams_.push_back({streams.counts + counts, streams.offsets + offsets, streams.values + values, groups,
                          cut_.unit, shift_, x_.lanes > 1 && cut_.direct && window_.step == 2 ? size_t(2) : size_t(1)});
      std::vector<bool> seen(cut_.layout == "even" ? groups * cut_.unit : groups);
      for (size_t group = 0; group < groups; ++group, counts += header()) {
        if (streams.counts_length - counts < header()) refuse("the counts are too short");
        const Taken taken = taken_of(streams.counts + counts, seen);
        if (streams.offsets_length - offsets < taken.offsets || streams.values_length - values < taken.values) {
          refuse("the streams are too short");
        }
        for (size_t i = 0; i < taken.offsets; ++i) {
          if (size_t(streams.offsets[offsets + i]) << shift_ >= limit) refuse("an offset lies outside its block");
        }
        offsets += taken.offsets;
        values += taken.values;
      }
    }
  }
  if (counts != streams.counts_length || offsets != streams.offsets_length || values != streams.values_length) {
    refuse("the streams are too long");
  }
}

void SparseConv::gather(const float* x, const Tile& tile, size_t block, float* to) const {
  const secateur_gather work{x + block * cut_.block * x_.stride + tile.x, x_.stride, inputs_of(block), x_.row,
                             window_.step, window_.width, window_.dilation, phase_rows_.data(),
                             std::min(cut_.tile, y_.height) - tile.rows, row_, to};  // the last tile has fewer rows
  table_.conv_gather(&work);
}

// The pixels of a tile, channel after channel: in planes of their own they lie a page and more apart.
void SparseConv::gather_images(const float* x, const Tile& tile, size_t block, float* to) const {
  const size_t lanes = x_.lanes, most = run_ / lanes;
  const bool flat = window_.step == 1 && tile.rows == most;  // one run of floats; else pixel by pixel
  const size_t rows[] = {flat ? 1 : most};
  const secateur_gather work{x + block * cut_.block * x_.stride + tile.x, x_.stride, inputs_of(block),
                             window_.step * lanes, 1, 1, 1, rows, flat ? 0 : most - tile.rows, flat ? run_ : lanes, to};
  table_.conv_gather(&work);
}

// The slice that comes after this one.
secateur_conv_ahead SparseConv::ahead_of(const float* x, size_t tile, size_t block) const {
  const size_t next = (block + 1) % blocks();
  if (next == 0 && ++tile == tiles_.size()) return {};
  const Tile& there = tiles_[tile];
  const size_t pixels = (there.rows - 1) * window_.step + window_.dilation * (window_.width - 1) + 1;
  return {x + next * cut_.block * x_.stride + there.x, x_.stride, inputs_of(next), window_.dilation * x_.row,
          window_.height, pixels};
}

void SparseConv::run(const Frame& frame, size_t piece) const {
  const size_t part = piece % parts();
  piece /= parts();
  const size_t group = piece / chunks(), chunk = piece % chunks();
  const size_t first = group * outputs() + chunk * cut_.chunk, channels = outputs_of(chunk);
  const size_t buffer = cut_.direct ? 0 : rounded(cut_.block * run_, Planes::vector) + Planes::vector;
  float* const copied = scratch(buffer + rounded(channels, cut_.unit) * width_);
  const float* const x = from_.read(frame) + group * inputs() * x_.stride;
  float* const y = to_.write(frame) + first * y_.stride;
  secateur_conv_tile work{};
  work.sums = copied + buffer;
  work.bias = bias_.empty() ? nullptr : bias_.data() + first;
  work.y_stride = work.residual_stride = y_.stride;
  work.lanes = cut_.lanes;
  work.channels = channels;
  work.activation = activation_;
  work.images = x_.lanes > 1;
  work.past = past_;
  if (part == 0) y_.zero_margins(y, channels, y_.lanes > 1 ? y_.line() : cut_.direct ? y_.row : row_);
  for (size_t i = part * tiles_.size() / parts(); i < (part + 1) * tiles_.size() / parts(); ++i) {
    const Tile& tile = tiles_[i];
    work.y = y + tile.y;
    if (has_residual_) work.residual = residual_.read(frame) + first * y_.stride + tile.y;
    work.out = shapes_[tile.shape].out.data();
    work.mask = shapes_[tile.shape].mask.data();
    work.vectors = cut_.direct || x_.lanes > 1 ? tile.rows : tile.rows * (row_ / cut_.lanes);
    for (size_t block = 0; block < blocks(); ++block) {
      if (cut_.direct) {
        work.x = x + block * cut_.block * x_.stride + tile.x;
      } else {
        x_.lanes > 1 ? gather_images(x, tile, block, copied) : gather(x, tile, block, copied);
        work.x = copied;
      }
      work.first = block == 0;
      work.last = block + 1 == blocks();
      if (x_.lanes > 1) work.ahead = ahead_of(x, i, block);
      kernel_(&streams_[piece * blocks() + block], &work);
    }
  }
}

}  // namespace secateur
