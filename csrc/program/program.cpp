#include "program.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <stdexcept>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace secateur {
namespace {

constexpr size_t slack = 256;  // floats behind the end that whole vectors may read

// Pages of 2 MiB: with 4 KiB ones the planes of a large network miss the translation buffer at every turn.
void ask_for_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__)
  constexpr size_t huge = size_t(1) << 21;
  const auto begin = (reinterpret_cast<uintptr_t>(memory) + huge - 1) / huge * huge;
  const auto end = (reinterpret_cast<uintptr_t>(memory) + bytes) / huge * huge;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a wish, not a need
#endif
}

}  // namespace

Program::Program(size_t lanes, size_t arena, std::vector<size_t> inputs, std::vector<size_t> outputs)
    : lanes_(lanes), floats_(arena), inputs_(std::move(inputs)), outputs_(std::move(outputs)) {
  if (lanes < 1) throw std::invalid_argument("program: at least one lane is needed");
}

Program::Lease::Lease(const Program& program) : program_(program) {
  {
    const std::lock_guard<std::mutex> hold(program.shelf_lock_);
    if (!program.shelf_.empty()) {
      arena_ = std::move(program.shelf_.back());
      program.shelf_.pop_back();
    }
  }
  const size_t floats = program.floats_ + slack;
  if (arena_ == nullptr) {
    arena_ = std::make_unique<Arena>();
    arena_->memory = aligned_floats(floats);
    ask_for_huge_pages(arena_->memory.get(), floats * sizeof(float));
    arena_->inputs.resize(program.inputs_.size());
    arena_->outputs.resize(program.outputs_.size());
    std::fill_n(arena_->memory.get() + program.floats_, slack, 0.0f);
  }
  if (program.poisoned_) std::fill_n(arena_->memory.get(), floats, std::numeric_limits<float>::quiet_NaN());
}

Program::Lease::~Lease() {
  const std::lock_guard<std::mutex> hold(program_.shelf_lock_);
  program_.shelf_.push_back(std::move(arena_));
}

Frame Program::Lease::frame(const float* const* inputs, float* const* outputs, size_t first, size_t samples) {
  for (size_t i = 0; i < arena_->inputs.size(); ++i) arena_->inputs[i] = inputs[i] + first * program_.inputs_[i];
  for (size_t i = 0; i < arena_->outputs.size(); ++i) arena_->outputs[i] = outputs[i] + first * program_.outputs_[i];
  return {arena_->memory.get(), arena_->inputs.data(), arena_->outputs.data(), std::min(program_.lanes_, samples - first)};
}

void Program::run(const float* const* inputs, float* const* outputs, size_t samples) const {
  Lease lease(*this);
  for (size_t first = 0; first < samples; first += lanes_) {
    const Frame frame = lease.frame(inputs, outputs, first, samples);
    for (const auto& step : steps_) {
      const size_t pieces = step->pieces();
      for (size_t piece = 0; piece < pieces; ++piece) step->run(frame, piece);
    }
  }
}

std::vector<double> Program::time(const float* const* inputs, float* const* outputs, size_t samples) const {
  using Clock = std::chrono::steady_clock;
  std::vector<double> seconds(steps_.size(), 0.0);
  Lease lease(*this);
  for (size_t first = 0; first < samples; first += lanes_) {
    const Frame frame = lease.frame(inputs, outputs, first, samples);
    for (size_t i = 0; i < steps_.size(); ++i) {
      const auto begin = Clock::now();
      const size_t pieces = steps_[i]->pieces();
      for (size_t piece = 0; piece < pieces; ++piece) steps_[i]->run(frame, piece);
      seconds[i] += std::chrono::duration<double>(Clock::now() - begin).count();
    }
  }
  return seconds;
}

}  // namespace secateur
