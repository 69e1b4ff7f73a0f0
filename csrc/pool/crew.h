// The workers of one process and the region that they share.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "bed.h"
#include "machine.h"
#include "pool.h"

namespace secateur {

// The caller offers a region by storing a ticket: how many pieces are left, and how many workers may help. Whoever
// lowers the ticket owns the pieces in between, and the region stands until he has reported them, so its fields are
// read after a claim only and need no protection. Nobody waits for a worker that claimed nothing, and a wake that comes
// too late costs speed, never a result.
//
// A crew is never destroyed: its threads end with the process, whenever that is.
class Crew {
 public:
  static constexpr size_t most_helpers = 255;

  // One region at a time; false if another caller, or this one in a piece, has the crew.
  bool acquire() {
    return !owned_.load(std::memory_order_relaxed) && !owned_.exchange(true, std::memory_order_acquire);
  }
  void release() { owned_.store(false, std::memory_order_release); }

  // These are for the owner.
  void run(size_t pieces, size_t helpers, Work work, void* context, double work_us);
  void rouse(size_t helpers, double work_us);  // work is coming

  void enter(double work_us);  // a program begins
  void leave();

  Pool::State state() const;

  static std::atomic<bool> insisting;  // see Pool::insist

 private:
  struct Region {
    Work work;
    void* context;
    size_t pieces;
    uint64_t mode;
  };
  struct alignas(64) Helper {
    Bed bed;
    pthread_t thread;
    std::atomic<int> avoids{-1};  // the processor of the caller that woke it last
  };
  struct Start {
    Crew* crew;
    size_t id;
  };
  static constexpr size_t caller = most_helpers;  // in place of a worker's number

  static uint64_t ticket_of(size_t helpers, size_t left) { return uint64_t(helpers) << 48 | left; }
  static size_t helpers_in(uint64_t ticket) { return ticket >> 48; }
  static size_t left_in(uint64_t ticket) { return ticket & ((uint64_t(1) << 48) - 1); }
  static bool offers(uint64_t ticket, size_t id) {
    return left_in(ticket) > 0 && (id == caller || id < helpers_in(ticket));
  }

  bool stays_alone(uint64_t now);
  bool worth_waking(double work_us, uint64_t now);
  void start_missing(size_t helpers);
  void wake(size_t helpers, size_t at_most);
  size_t work_off(size_t id);
  bool await(size_t others, size_t own, uint64_t start);

  static void* begin(void* start);
  void serve(size_t id);
  bool watch(size_t id);
  bool on_callers_cpu() const;

  // One line: a worker that sees the ticket change has the rest too.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  Region region_{};
  std::atomic<int> caller_cpu_{-1};

  alignas(64) std::atomic<size_t> done_{0};  // pieces that workers have reported
  std::atomic<bool> crowded_{false};         // somebody noticed that the processors are held by others
  Bed caller_bed_;

  alignas(64) std::atomic<size_t> sessions_{0};
  std::atomic<uint64_t> program_end_{0};

  alignas(64) std::atomic<bool> owned_{false};
  std::atomic<uint64_t> alone_until_{0};
  uint64_t alone_ns_ = 0;
  std::atomic<uint64_t> last_wake_{0};
  std::atomic<size_t> started_{0};
  Helper helpers_[most_helpers];
};

}  // namespace secateur
