#include "program.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <ctime>
#include <limits>
#include <new>
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
    arena_->sample_inputs.resize(program.inputs_.size());
    arena_->sample_outputs.resize(program.outputs_.size());
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
  const size_t widest = program_.outputs_.empty() ? 0 : *std::max_element(program_.outputs_.begin(), program_.outputs_.end());
  return {arena_->memory.get(), arena_->inputs.data(), arena_->outputs.data(), std::min(program_.lanes_, samples - first), 0,
          past_caches(widest * samples)};
}

Frame Program::Lease::sample(const Frame& frame, size_t i) {
  for (size_t k = 0; k < arena_->inputs.size(); ++k) arena_->sample_inputs[k] = frame.inputs[k] + i * program_.inputs_[k];
  for (size_t k = 0; k < arena_->outputs.size(); ++k) {
    arena_->sample_outputs[k] = frame.outputs[k] + i * program_.outputs_[k];
  }
  return {frame.arena, arena_->sample_inputs.data(), arena_->sample_outputs.data(), 1, i, frame.past};
}

template <typename Run>
void Program::Lease::walk(const Frame& frame, const Run& run) {
  const std::vector<bool>& each = program_.each_;
  for (size_t begin = 0, end = 0; begin < each.size(); begin = end) {
    for (end = begin + 1; each[begin] && end < each.size() && each[end];) ++end;
    if (!each[begin]) {
      run(begin, frame);
      continue;
    }
    for (size_t i = 0; i < frame.samples; ++i) {
      const Frame one = sample(frame, i);
      for (size_t step = begin; step < end; ++step) run(step, one);
    }
  }
}

void Program::share(size_t threads, Backend backend, std::vector<double> step_us) {
  if (step_us.size() != steps_.size()) throw std::invalid_argument("program: one time per step is needed");
  threads_ = std::max<size_t>(threads, 1);
  backend_ = backend;
  step_us_ = std::move(step_us);
  chunk_us_ = 0;
  for (double us : step_us_) chunk_us_ += us;
}

void Program::run(const float* const* inputs, float* const* outputs, size_t samples) const {
  if (threads_ > 1 && samples > 0) return run_shared(inputs, outputs, samples);
  Lease lease(*this);
  for (size_t first = 0; first < samples; first += lanes_) {
    lease.walk(lease.frame(inputs, outputs, first, samples),
               [this](size_t step, const Frame& frame) { run_pieces(frame, step); });
  }
}

// GOMP_parallel waits for all of its threads, those too that have not got a processor yet: beside a busy process that
// takes longer than one thread alone. Whoever meets that leaves torch's threads alone for a while.
void Program::run_shared(const float* const* inputs, float* const* outputs, size_t samples) const {
  using Clock = std::chrono::steady_clock;
  const auto now = [] { return std::chrono::duration<double, std::micro>(Clock::now().time_since_epoch()).count(); };
  const double begin = now();
  const bool own = backend_ == Backend::own || begin < gomp_again_.load(std::memory_order_relaxed);
  const Backend backend = own ? Backend::own : Backend::gomp;
  const double us = chunk_us_ * double((samples + lanes_ - 1) / lanes_);
  {
    const Session session(own ? threads_ : 1, own ? us : 0);
    if (samples > lanes_) {
      run_chunks(inputs, outputs, samples, backend);
    } else {
      Lease lease(*this);
      lease.walk(lease.frame(inputs, outputs, 0, samples),
                 [this, backend](size_t step, const Frame& frame) { share_pieces(frame, step, backend); });
    }
  }
  const double end = now();
  if (!own && end - begin > 1.1 * us) gomp_again_.store(end + 20 * (end - begin), std::memory_order_relaxed);
}

void Program::run_pieces(const Frame& frame, size_t step) const {
  const size_t pieces = steps_[step]->pieces();
  for (size_t piece = 0; piece < pieces; ++piece) steps_[step]->run(frame, piece);
}

// The pieces of one step, one chunk or one sample of it.
void Program::share_pieces(const Frame& frame, size_t step, Backend backend) const {
  struct Context {
    const Step* step;
    const Frame* frame;
    std::atomic<bool> failed{false};
  };
  Context context{steps_[step].get(), &frame};
  const double us = each_[step] ? step_us_[step] / double(lanes_) : step_us_[step];
  // A fork and join costs less than a microsecond where the workers are awake, and some pieces are much shorter.
  Pool::instance().parallel_for(
      steps_[step]->pieces(), us < 2 ? 1 : threads_,
      [](void* data, size_t piece) {
        Context& here = *static_cast<Context*>(data);
        try {
          here.step->run(*here.frame, piece);
        } catch (const std::bad_alloc&) {  // nothing may be thrown through the threads of a pool
          here.failed = true;
        }
      },
      &context, us, backend);
  if (context.failed) throw std::bad_alloc();
}

// Whole chunks, each thread in an arena of its own.
void Program::run_chunks(const float* const* inputs, float* const* outputs, size_t samples, Backend backend) const {
  struct Context {
    const Program* program;
    const float* const* inputs;
    float* const* outputs;
    size_t samples;
    std::atomic<bool> failed{false};
  };
  Context context{this, inputs, outputs, samples};
  const size_t chunks = (samples + lanes_ - 1) / lanes_;
  Pool::instance().parallel_for(
      chunks, threads_,
      [](void* data, size_t chunk) {
        Context& here = *static_cast<Context*>(data);
        const Program& program = *here.program;
        try {
          Lease lease(program);
          lease.walk(lease.frame(here.inputs, here.outputs, chunk * program.lanes_, here.samples),
                     [&program](size_t step, const Frame& frame) { program.run_pieces(frame, step); });
        } catch (const std::bad_alloc&) {
          here.failed = true;
        }
      },
      &context, chunk_us_ * double(chunks), backend);
  if (context.failed) throw std::bad_alloc();
}

namespace {

// Of this thread, in the processor; negative where that is not known.
double seconds_worked() {
#if defined(CLOCK_THREAD_CPUTIME_ID)
  timespec now;
  if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0) return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
#endif
  return -1.0;
}

}  // namespace

std::vector<double> Program::time(const float* const* inputs, float* const* outputs, size_t samples) const {
  using Clock = std::chrono::steady_clock;
  std::vector<double> seconds(steps_.size(), 0.0);
  Lease lease(*this);
  for (size_t first = 0; first < samples; first += lanes_) {
    lease.walk(lease.frame(inputs, outputs, first, samples), [&](size_t step, const Frame& frame) {
      const double worked = seconds_worked();
      const auto begin = Clock::now();
      run_pieces(frame, step);
      const double passed = std::chrono::duration<double>(Clock::now() - begin).count();
      // Long enough to have lost the processor: what this thread worked then, not what passed.
      seconds[step] += passed < 1e-4 || worked < 0 ? passed : std::min(passed, seconds_worked() - worked);
    });
  }
  return seconds;
}

}  // namespace secateur
