// What stands around convolutions: pooling, sums, and the ways of pixels into and out of planes.
#pragma once

#include <cstdint>
#include <vector>

#include "../dispatch.h"
#include "../program/step.h"
#include "planes.h"

namespace secateur {

// A row-major input [C][H][W] to planes, of one image or of 16 side by side.
class ToPlanes : public Step {
 public:
  ToPlanes(const KernelTable& table, const Planes& planes, Place from, Place to);
  size_t pieces() const override { return planes_.channels; }
  void run(const Frame& frame, size_t piece) const override;

 private:
  const KernelTable& table_;
  Planes planes_;
  Place from_, to_;
};

// Planes to a row-major output, or, in the arena, to a panel (program/panel.h) of as many samples as there are images.
class FromPlanes : public Step {
 public:
  FromPlanes(const KernelTable& table, const Planes& planes, Place from, Place to);
  size_t pieces() const override { return planes_.lanes > 1 ? planes_.channels : 1; }
  void run(const Frame& frame, size_t piece) const override;

 private:
  const KernelTable& table_;
  Planes planes_;
  Place from_, to_;
};

// Images one after another to 16 side by side, and back: from.each or to.each is the way from image to image.
class Regroup : public Step {
 public:
  // One of x and y has 16 images side by side; else they are alike but for the padding.
  Regroup(const KernelTable& table, const Planes& x, const Planes& y, Place from, Place to);
  size_t pieces() const override { return x_.channels; }
  void run(const Frame& frame, size_t piece) const override;

 private:
  const KernelTable& table_;
  Planes x_, y_;
  Place from_, to_;
};

// y = activation(x + other), whatever their padding; other may be null.
class AddPlanes : public Step {
 public:
  AddPlanes(const KernelTable& table, const Planes& x, const Planes* other, const Planes& y, Place from,
            const Place* second, Place to, int activation);
  size_t pieces() const override { return y_.channels; }
  void run(const Frame& frame, size_t piece) const override;

 private:
  const KernelTable& table_;
  Planes x_, other_, y_;
  Place from_, second_, to_;
  bool has_other_;
  int activation_;
};

enum class Pooling { maximum, average, average_pixels };  // average_pixels: padding does not count

class Pool : public Step {
 public:
  Pool(const KernelTable& table, Pooling kind, const Planes& x, const Planes& y, size_t kernel, size_t step,
       size_t padding, Place from, Place to);
  size_t pieces() const override { return y_.channels; }
  void run(const Frame& frame, size_t piece) const override;

 private:
  const KernelTable& table_;
  Pooling kind_;
  Planes x_, y_;
  size_t kernel_, step_, padding_;
  Place from_, to_;
  size_t floats_;
  std::vector<float> inside_, scale_;
  std::vector<int32_t> mask_;
};

// The mean of each plane, to a panel of as many samples as there are images, or of one image to a row-major output.
class GlobalMean : public Step {
 public:
  GlobalMean(const KernelTable& table, const Planes& x, Place from, Place to);
  void run(const Frame& frame, size_t piece) const override;

 private:
  const KernelTable& table_;
  Planes x_;
  Place from_, to_;
};

}  // namespace secateur
