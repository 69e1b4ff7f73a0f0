#include "crew.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>

namespace secateur {
namespace {

constexpr uint64_t us = 1000;  // nanoseconds
constexpr uint64_t longest_watch = 30 * us;
constexpr double worth_a_wake_us = 100;
constexpr uint64_t wake_pause = 100 * us;
// Waiting for a worker beyond the length of a piece and this much: it has lost its processor.
constexpr uint64_t patience = 50 * us;
// A worker that gets its processor later than this after the last wake shares it with others.
constexpr uint64_t late = 300 * us;
constexpr uint64_t shortest_alone = 2000 * us, longest_alone = 64000 * us;

void run_alone(size_t pieces, Work work, void* context) {
  for (size_t piece = 0; piece < pieces; ++piece) work(context, piece);
}

// A sleeping worker shall wake elsewhere: Linux (6.18, two processors, one idle) woke two of three on the very
// processor of the caller. False where this thread may run nowhere else. Where the system refuses, the worker notices
// by itself.
bool keep_off(pthread_t worker, int cpu) {
#if defined(__linux__)
  cpu_set_t allowed;
  if (cpu < 0 || cpu >= CPU_SETSIZE || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return true;
  CPU_CLR(cpu, &allowed);
  if (CPU_COUNT(&allowed) == 0) return false;
  pthread_setaffinity_np(worker, sizeof allowed, &allowed);
#endif
  return true;
}

}  // namespace

std::atomic<bool> Crew::insisting{false};

void Crew::run(size_t pieces, size_t helpers, Work work, void* context, double work_us) {
  const uint64_t start = now_ns();
  const bool waking = !stays_alone(start) && worth_waking(work_us, start);
  if (stays_alone(start) || (!waking && started_.load(std::memory_order_relaxed) == 0)) {
    return run_alone(pieces, work, context);
  }
  helpers = std::min({helpers, pieces - 1, most_helpers});
  region_ = {work, context, pieces, float_mode()};
  done_.store(0, std::memory_order_relaxed);
  caller_cpu_.store(this_cpu(), std::memory_order_relaxed);
  ticket_.store(ticket_of(helpers, pieces), std::memory_order_release);
  if (waking) {
    start_missing(helpers);
    wake(helpers, 2);
  }
  const size_t own = work_off(caller);
  if (own < pieces && await(pieces - own, own, start)) crowded_.store(true, std::memory_order_relaxed);
}

void Crew::rouse(size_t helpers, double work_us) {
  const uint64_t now = now_ns();
  if (stays_alone(now) || !worth_waking(work_us, now)) return;
  helpers = std::min(helpers, most_helpers);
  caller_cpu_.store(this_cpu(), std::memory_order_relaxed);
  start_missing(helpers);
  wake(helpers, helpers);
}

// Where other programs hold the processors, help costs more than it brings (the wake, and waiting for a worker that
// lost its processor with a piece in hand): the caller works alone for a while, longer when this happens again soon.
bool Crew::stays_alone(uint64_t now) {
  if (crowded_.load(std::memory_order_relaxed)) {
    crowded_.store(false, std::memory_order_relaxed);
    const bool again = now < alone_until_.load(std::memory_order_relaxed) + 8 * alone_ns_;
    alone_ns_ = again ? std::clamp(2 * alone_ns_, shortest_alone, longest_alone) : shortest_alone;
    alone_until_.store(now + alone_ns_, std::memory_order_relaxed);
  }
  return now < alone_until_.load(std::memory_order_relaxed) && !insisting.load(std::memory_order_relaxed);
}

// A long region is; a short one is where enough of its program is left, but not one after the other.
bool Crew::worth_waking(double work_us, uint64_t now) {
  const bool long_program = now + uint64_t(worth_a_wake_us) * us <= program_end_.load(std::memory_order_relaxed);
  const bool long_ago = now >= last_wake_.load(std::memory_order_relaxed) + wake_pause;
  if (!(work_us >= worth_a_wake_us) && !(long_program && long_ago)) return false;
  last_wake_.store(now, std::memory_order_relaxed);
  return true;
}

// Where the system gives no more threads, those that there are do the work.
void Crew::start_missing(size_t helpers) {
  for (size_t id = started_.load(std::memory_order_relaxed); id < helpers; ++id) {
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigset_t all, before;  // signals are for the threads of the user
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    Start* start = new Start{this, id};
    const bool ok = pthread_create(&helpers_[id].thread, &attributes, begin, start) == 0;
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_attr_destroy(&attributes);
    if (!ok) {
      delete start;
      return;
    }
    started_.store(id + 1, std::memory_order_release);
  }
}

// The woken wake two more each.
void Crew::wake(size_t helpers, size_t at_most) {
  const size_t there = std::min(helpers, started_.load(std::memory_order_acquire));
  const int cpu = caller_cpu_.load(std::memory_order_relaxed);
  for (size_t id = 0; id < there && at_most > 0; ++id) {
    Helper& helper = helpers_[id];
    if (!helper.bed.occupied()) continue;
    if (helper.avoids.load(std::memory_order_relaxed) != cpu) {
      if (!keep_off(helper.thread, cpu)) {
        crowded_.store(true, std::memory_order_relaxed);
        return;
      }
      helper.avoids.store(cpu, std::memory_order_relaxed);
    }
    at_most -= helper.bed.wake();
  }
}

// Claims pieces and runs them until none is left; returns how many. Claims get smaller towards the end.
size_t Crew::work_off(size_t id) {
  size_t ran = 0;
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while (offers(ticket, id)) {
    const size_t left = left_in(ticket);
    const size_t count = std::max<size_t>(1, left / (4 * (helpers_in(ticket) + 1)));
    if (!ticket_.compare_exchange_weak(ticket, ticket - count, std::memory_order_acq_rel, std::memory_order_acquire)) {
      continue;
    }
    if (ran == 0) set_float_mode(region_.mode);
    const size_t first = region_.pieces - left;
    for (size_t piece = first; piece < first + count; ++piece) region_.work(region_.context, piece);
    ran += count;
    ticket = ticket_.load(std::memory_order_acquire);
  }
  return ran;
}

// Waits for the pieces that workers have claimed. True if one of them seems to have lost its processor.
bool Crew::await(size_t others, size_t own, uint64_t start) {
  const auto done = [&] { return done_.load(std::memory_order_seq_cst) == others; };
  for (int i = 0; i < 64; ++i) {
    if (done()) return false;
    relax();
  }
  const uint64_t began = now_ns();
  const uint64_t piece = (began - start) / std::max<size_t>(own, 1);
  while (now_ns() < began + 2 * piece + patience) {
    for (int i = 0; i < 16; ++i) {
      if (done()) return false;
      relax();
    }
  }
  // An idle processor draws the worker that waits for one.
  while (!done()) {
    caller_bed_.lie_down();
    if (done()) {
      caller_bed_.get_up();
      break;
    }
    caller_bed_.sleep();
  }
  return true;
}

void Crew::enter(double work_us) {
  sessions_.fetch_add(1, std::memory_order_relaxed);
  if (work_us >= worth_a_wake_us) {
    const double longest = 3600e6;  // an hour, so that no number overflows
    program_end_.store(now_ns() + uint64_t(std::min(work_us, longest)) * us, std::memory_order_relaxed);
  }
}

void Crew::leave() {
  if (sessions_.fetch_sub(1, std::memory_order_relaxed) == 1) program_end_.store(0, std::memory_order_relaxed);
}

Pool::State Crew::state() const {
  Pool::State state{started_.load(), 0, now_ns() < alone_until_.load()};
  for (size_t id = 0; id < state.workers; ++id) state.asleep += helpers_[id].bed.occupied();
  return state;
}

// The caller cannot run while this thread does.
bool Crew::on_callers_cpu() const {
  const int cpu = this_cpu();
  return cpu >= 0 && cpu == caller_cpu_.load(std::memory_order_relaxed);
}

void* Crew::begin(void* argument) {
  const Start start = *static_cast<Start*>(argument);
  delete static_cast<Start*>(argument);
#if defined(__linux__)
  pthread_setname_np(pthread_self(), "secateur");
#endif
  start.crew->serve(start.id);
  return nullptr;
}

void Crew::serve(size_t id) {
  Bed& bed = helpers_[id].bed;
  for (bool woken = true;;) {
    const bool beside_caller = on_callers_cpu();
    if (woken && (beside_caller || now_ns() > last_wake_.load(std::memory_order_relaxed) + late)) {
      crowded_.store(true, std::memory_order_relaxed);
    }
    if (!beside_caller) {
      const uint64_t ticket = ticket_.load(std::memory_order_acquire);
      if (woken && offers(ticket, id)) wake(helpers_in(ticket), 2);
      woken = false;
      if (const size_t ran = work_off(id)) {
        done_.fetch_add(ran, std::memory_order_seq_cst);
        caller_bed_.wake();
      }
      if (watch(id)) continue;
    }
    bed.lie_down();
    if (!beside_caller && offers(ticket_.load(std::memory_order_acquire), id)) {
      bed.get_up();
      continue;
    }
    bed.sleep();
    woken = true;
  }
}

// Spins while a program runs; true if it brings a region in time.
bool Crew::watch(size_t id) {
  const uint64_t end = now_ns() + longest_watch;
  while (sessions_.load(std::memory_order_relaxed) > 0) {
    for (int i = 0; i < 32; ++i) {
      if (offers(ticket_.load(std::memory_order_acquire), id)) return true;
      relax();
    }
    if (now_ns() >= end || on_callers_cpu()) return false;
  }
  return false;
}

}  // namespace secateur
