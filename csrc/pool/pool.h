// Threads of the runtime: one pool per process, for regions of many independent pieces.
#pragma once

#include <atomic>
#include <cstddef>
#include <limits>

namespace secateur {

// Runs one piece of a region. Must not throw.
using Work = void (*)(void* context, size_t piece);

// Whose threads run a region. `gomp` is the GOMP_parallel that torch has loaded (its workers still spin after a torch
// operator, on the very cores that ours would need); where the process has none, and after a fork, `own` runs.
enum class Backend { own, gomp };

class Crew;

class Pool {
 public:
  static Pool& instance();

  // Runs work(context, 0 .. pieces - 1), each once; returns when all are done. At most `threads` take part, the caller
  // among them. A concurrent second caller, or a caller inside a piece, runs its pieces itself, in order; a single
  // piece, or a single thread, is no region, and what it calls may use the threads.
  // work_us is what the region takes on one thread: sleeping workers are woken for 100 us and more, or when the program
  // around (see Session) still takes that long.
  void parallel_for(size_t pieces, size_t threads, Work work, void* context,
                    double work_us = std::numeric_limits<double>::infinity(), Backend backend = Backend::own);

  // Which of the two a region would get.
  Backend resolve(Backend wanted) const;

  // For tests and tuning.
  struct State {
    size_t workers;  // started in this process
    size_t asleep;
    bool alone;  // the other cores were busy: the caller works alone for a while
  };
  State state() const;
  // Workers are asked for help even where the other cores are busy.
  void insist(bool on);

  // In the child of a fork the workers are gone, and whatever they held is forgotten.
  void forget_after_fork();

 private:
  friend class Session;
  constexpr Pool() = default;
  Crew& crew();

  static Pool only;

  std::atomic<Crew*> crew_{nullptr};
  std::atomic<bool> forked_{false};
};

// Stands while a program runs: workers then spin between its regions, at most 30 us each time, and sleep afterwards.
class Session {
 public:
  // What the whole program takes on one thread: from 100 us on, `threads` - 1 workers are woken in advance.
  explicit Session(size_t threads = 1, double work_us = 0);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

 private:
  Crew& crew_;
};

}  // namespace secateur
