// Where the pixels of a value lie: `channels` planes, `stride` floats apart. In a plane, pixel (h, w) is at first + h *
// row + w * lanes. A row is `width` pixels and `pad` zeros, which end this row and begin the next one; before the first
// and behind the last row there are `pad` rows of zeros and `pad` more places. Who writes a value writes all of it.
// A pixel is one float (lanes 1: one image), or 16, those of 16 images side by side.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>

namespace secateur {

struct Planes {
  size_t channels, height, width, pad;  // pad: the largest padding of all that read the value
  size_t lanes;                         // images side by side
  size_t row, first, stride;            // in floats

  static constexpr size_t vector = 16;

  Planes(size_t channels, size_t height, size_t width, size_t pad, size_t lanes = 1)
      : channels(channels), height(height), width(width), pad(pad), lanes(lanes) {
    constexpr size_t most = size_t(1) << 20;
    if (channels < 1 || height < 1 || width < 1 || channels > most || height > most || width > most || pad > 256) {
      throw std::invalid_argument("planes: " + std::to_string(channels) + " x " + std::to_string(height) + " x " +
                                  std::to_string(width) + " with " + std::to_string(pad) + " places of padding");
    }
    if (lanes != 1 && lanes != vector) throw std::invalid_argument("planes: 1 or 16 images lie side by side");
    row = (width + pad) * lanes;
    first = (margin() + vector - 1) / vector * vector;
    // An odd number of cache lines, so that the planes of many channels spread over all sets of a cache; and room for a
    // vector that begins at the last pixel.
    const size_t lines = (end() + std::max(margin(), vector) + vector - 1) / vector;
    stride = (lines | 1) * vector;
    if (stride > most * most / channels) throw std::invalid_argument("planes: too large");
  }

  size_t line() const { return width * lanes; }  // floats of a row's pixels
  size_t margin() const { return pad * row + pad * lanes; }
  size_t end() const { return first + height * row; }
  size_t floats() const { return channels * stride; }

  bool operator==(const Planes& other) const {
    return channels == other.channels && height == other.height && width == other.width && pad == other.pad &&
           lanes == other.lanes;
  }
  bool operator!=(const Planes& other) const { return !(*this == other); }

  // Zeros before the first row, behind the last pixel, and in every row behind its first `covered` floats, of n planes.
  void zero_margins(float* planes, size_t n, size_t covered) const {
    for (size_t c = 0; c < n; ++c, planes += stride) {
      for (size_t i = 0; i < first; i += vector) zero_vector(planes + i);
      for (size_t h = 0; covered < row && h + 1 < height; ++h) {
        for (size_t w = covered; w < row; ++w) planes[first + h * row + w] = 0.0f;
      }
      for (size_t i = first + (height - 1) * row + line(); i + vector < stride; i += vector) zero_vector(planes + i);
      zero_vector(planes + stride - vector);
    }
  }

 private:
  // Inline, unlike a call that fills any number of floats: most of these runs are as long as this or little longer.
  static void zero_vector(float* at) { std::memset(at, 0, vector * sizeof(float)); }
};

}  // namespace secateur
