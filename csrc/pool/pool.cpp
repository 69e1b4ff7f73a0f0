#include "pool.h"

#include <pthread.h>

#include <type_traits>

#include "crew.h"
#include "gomp.h"

namespace secateur {
namespace {

// This thread is in a piece of a region that found the crew taken. In the others the crew itself is still taken.
thread_local bool turned_away = false;

}  // namespace

// All that stands before the first region is constant: a child that was forked while another thread initialised a local
// static would wait for that thread for ever. Nothing to destroy either: workers look at it while the process ends.
Pool Pool::only;
static_assert(std::is_trivially_destructible<Pool>::value, "workers may outlive the destructors");

namespace {

[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { Pool::instance().forget_after_fork(); });

}  // namespace

Pool& Pool::instance() { return only; }

void Pool::forget_after_fork() {
  crew_.store(nullptr, std::memory_order_relaxed);
  // An OpenMP runtime that has been used hangs in a child, and nobody can ask it whether it has.
  forked_.store(true, std::memory_order_relaxed);
}

Crew& Pool::crew() {
  Crew* crew = crew_.load(std::memory_order_acquire);
  if (crew != nullptr) return *crew;
  Crew* fresh = new Crew;
  if (crew_.compare_exchange_strong(crew, fresh, std::memory_order_acq_rel, std::memory_order_acquire)) return *fresh;
  delete fresh;
  return *crew;
}

Backend Pool::resolve(Backend wanted) const {
  const bool gomp = wanted == Backend::gomp && !forked_.load(std::memory_order_relaxed) && find_gomp() != nullptr;
  return gomp ? Backend::gomp : Backend::own;
}

void Pool::parallel_for(size_t pieces, size_t threads, Work work, void* context, double work_us, Backend backend) {
  const bool region = pieces > 1 && threads > 1 && !turned_away;
  Crew* all = region ? &crew() : nullptr;
  if (region && all->acquire()) {
    if (resolve(backend) == Backend::gomp) {
      run_on_gomp(find_gomp(), pieces, threads, work, context);
    } else {
      all->run(pieces, threads - 1, work, context, work_us);
    }
    all->release();
    return;
  }
  if (region) turned_away = true;
  for (size_t piece = 0; piece < pieces; ++piece) work(context, piece);
  if (region) turned_away = false;
}

Pool::State Pool::state() const {
  const Crew* crew = crew_.load(std::memory_order_acquire);
  return crew == nullptr ? State{0, 0, false} : crew->state();
}

void Pool::insist(bool on) { Crew::insisting.store(on, std::memory_order_relaxed); }

Session::Session(size_t threads, double work_us) : crew_(Pool::instance().crew()) {
  crew_.enter(work_us);
  if (threads > 1 && crew_.acquire()) {
    crew_.rouse(threads - 1, work_us);
    crew_.release();
  }
}

Session::~Session() { crew_.leave(); }

}  // namespace secateur
