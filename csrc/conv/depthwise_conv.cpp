#include "depthwise_conv.h"

namespace secateur {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("depthwise convolution: " + what); }

constexpr size_t slack = 256;  // floats behind the arena that may be read

}  // namespace

DepthwiseConv::DepthwiseConv(const KernelTable& table, const Planes& x, const Planes& y, const Window& window,
                             size_t chunk, const float* weights, size_t length, Place from, Place to,
                             const Place* residual, const float* bias, int activation)
    : table_(table),
      x_(x),
      y_(y),
      window_(window),
      chunk_(chunk),
      from_(from),
      to_(to),
      residual_(residual == nullptr ? Place{} : *residual),
      has_residual_(residual != nullptr),
      activation_(activation),
      covered_((y.width + 3) / 4 * 4),
      bias_(y.channels, 0.0f) {
  window.check(x, y);
  check(length);
  if (bias != nullptr) bias_.assign(bias, bias + y.channels);
  take(weights);
}

void DepthwiseConv::check(size_t length) const {
  if (x_.lanes != 1 || y_.lanes != 1) refuse("images go one by one");
  if (window_.groups != x_.channels) refuse("every group has one input channel");
  if (length != y_.channels * window_.height * window_.width) refuse("the weights have another size");
  if (chunk_ < 1) refuse("a piece has one output channel at least");
  if (activation_ < 0 || activation_ >= secateur_activations) refuse("there is no such activation");
  if (from_.where != Place::arena || to_.where != Place::arena || residual_.where != Place::arena) {
    refuse("planes lie in the arena");
  }
  const size_t origin = x_.first - window_.padding * x_.row - window_.padding;
  const size_t last = (y_.height - 1) * window_.step + (window_.height - 1) * window_.dilation;
  const size_t widest = (y_.width + Planes::vector - 1) / Planes::vector * Planes::vector * window_.step;
  const size_t read = origin + last * x_.row + (window_.width - 1) * window_.dilation + widest;
  if (read > x_.stride + slack) refuse("the step is too large for this width");
}

// Removed weights contribute nothing, not even to NaN and infinity: planes that have some go by a list of what is left.
void DepthwiseConv::take(const float* weights) {
  const size_t size = window_.height * window_.width;
  const bool square = window_.height == window_.width && (window_.width == 3 || window_.width == 5);
  const bool known = square && window_.step <= 2 && window_.dilation == 1;
  for (size_t channel = 0; channel < y_.channels; ++channel, weights += size) {
    const size_t at = weights_.size();
    for (size_t tap = 0; tap < size; ++tap) {
      if (weights[tap] == 0.0f) continue;
      const size_t row = tap / window_.width, column = tap % window_.width;
      weights_.push_back(weights[tap]);
      places_.push_back(int32_t((row * x_.row + column) * window_.dilation));
    }
    const size_t count = weights_.size() - at;
    taps_.push_back({at, count, known && count == size});
  }
}

void DepthwiseConv::run(const Frame& frame, size_t piece) const {
  const size_t multiple = y_.channels / x_.channels;
  const size_t first = piece * chunk_, end = std::min(first + chunk_, y_.channels);
  const float* const x = from_.read(frame) + x_.first - window_.padding * x_.row - window_.padding;
  secateur_depthwise work{};
  work.x_row = x_.row;
  work.y_row = y_.row;
  work.step = window_.step;
  work.rows = y_.height;
  work.columns = y_.width;
  work.activation = activation_;
  for (size_t channel = first; channel < end; ++channel) {
    const Taps& taps = taps_[channel];
    float* const y = to_.write(frame) + channel * y_.stride;
    work.x = x + channel / multiple * x_.stride;
    work.y = y + y_.first;
    if (has_residual_) work.residual = residual_.read(frame) + channel * y_.stride + y_.first;
    work.weights = weights_.data() + taps.at;
    work.places = places_.data() + taps.at;
    work.kernel = taps.whole ? window_.width : 0;
    work.taps = taps.count;
    work.bias = bias_[channel];
    table_.conv_depthwise(&work);
    y_.zero_margins(y, 1, covered_);  // after the pixels: before them it takes a third of the time of small planes
  }
}

}  // namespace secateur
