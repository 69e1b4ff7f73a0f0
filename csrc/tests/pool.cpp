// The thread pool under stress: a program of its own, built by tools/tsan.sh, which defines SECATEUR_POOL_STRESS.
// Without that nothing stands here, since the driver of the kernels compiles every file of this folder.
// Results are plain memory: a piece that runs twice, or a caller that returns too early, is a race for the sanitizer.
#ifdef SECATEUR_POOL_STRESS

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "../pool/machine.h"
#include "../pool/pool.h"

using secateur::Pool;
using secateur::Session;

namespace {

std::atomic<int> passed{0}, failed{0};

void expect(bool ok, const char* what, size_t n) {
  ok ? ++passed : ++failed;
  if (!ok) std::fprintf(stderr, "FAILED %s (%zu)\n", what, n);
}

struct Board {
  std::vector<uint64_t> runs, squares;
  size_t nested = 0;             // pieces of the region that each piece starts
  size_t nap_us = 0;             // how long a piece of a worker sleeps
  std::thread::id caller = std::this_thread::get_id();
  uint64_t mode = secateur::float_mode();
  std::atomic<size_t> strangers{0}, wrong_modes{0}, wrong_inside{0};
  explicit Board(size_t pieces) : runs(pieces), squares(pieces) {}
};

struct Inside {
  std::vector<size_t> order;
  std::thread::id caller = std::this_thread::get_id();
  bool elsewhere = false;
};

void run_inside(void* context, size_t piece) {
  Inside& inside = *static_cast<Inside*>(context);
  inside.order.push_back(piece);
  inside.elsewhere |= std::this_thread::get_id() != inside.caller;
}

void run_piece(void* context, size_t piece) {
  Board& board = *static_cast<Board*>(context);
  ++board.runs[piece];
  board.squares[piece] = uint64_t(piece) * piece;
  if (std::this_thread::get_id() != board.caller) {
    board.strangers.fetch_add(1, std::memory_order_relaxed);
    if (board.nap_us > 0) std::this_thread::sleep_for(std::chrono::microseconds(board.nap_us));
  }
  if (secateur::float_mode() != board.mode) board.wrong_modes.fetch_add(1, std::memory_order_relaxed);
  if (board.nested > 0) {
    Inside inside;
    Pool::instance().parallel_for(board.nested, 4, run_inside, &inside);
    bool ordered = inside.order.size() == board.nested && !inside.elsewhere;
    for (size_t i = 0; ordered && i < board.nested; ++i) ordered = inside.order[i] == i;
    if (!ordered) board.wrong_inside.fetch_add(1, std::memory_order_relaxed);
  }
}

void check(const Board& board, size_t regions, const char* what) {
  bool once = true, right = true;
  for (size_t i = 0; i < board.runs.size(); ++i) {
    once &= board.runs[i] == regions;
    right &= regions == 0 || board.squares[i] == uint64_t(i) * i;
  }
  expect(once, what, board.runs.size());
  expect(right, what, board.runs.size());
  expect(board.wrong_modes == 0, "floating-point mode of the caller", board.wrong_modes);
  expect(board.wrong_inside == 0, "a region in a piece runs there, in order", board.wrong_inside);
}

// Regions of all sizes, each looked at by its caller right afterwards; sometimes in a program.
size_t run_regions(size_t regions, unsigned seed, bool nested) {
  std::mt19937 random(seed);
  size_t strangers = 0;
  for (size_t i = 0; i < regions; ++i) {
    const size_t most = i % 8 == 0 ? 3000 : i % 2 == 0 ? 40 : 4;
    Board board(random() % (most + 1));
    const size_t threads = random() % 6, again = random() % 6;
    // A region of one piece or one thread leaves the threads to what it calls.
    if (nested && most < 100 && threads > 1 && board.runs.size() > 1) board.nested = random() % 5;
    const double work_us = random() % 3 == 0 ? 10 : 1000;
    std::optional<Session> program;
    if (random() % 2 == 0) program.emplace(threads, work_us);
    for (size_t j = 0; j <= again; ++j) {
      Pool::instance().parallel_for(board.runs.size(), threads, run_piece, &board, work_us);
    }
    check(board, again + 1, "each piece once");
    strangers += board.strangers;
  }
  return strangers;
}

void test_several_callers() {
  std::vector<std::thread> callers;
  for (unsigned seed = 0; seed < 4; ++seed) callers.emplace_back([seed] { run_regions(600, seed, true); });
  for (std::thread& caller : callers) caller.join();
}

// The caller runs out of pieces while a worker sleeps in one: it goes to bed, and is woken.
void test_slow_workers() {
  size_t strangers = 0;
  for (size_t i = 0; i < 400 && strangers < 20; ++i) {
    Board board(64);
    board.nap_us = 3000;
    const Session session(2, 1000);
    std::this_thread::sleep_for(std::chrono::microseconds(i % 2 == 0 ? 0 : 3000));
    Pool::instance().parallel_for(64, 3, run_piece, &board);
    check(board, 1, "slow workers");
    strangers += board.strangers;
  }
  expect(strangers > 0, "workers took part", strangers);
}

#if defined(__x86_64__)
void test_float_mode() {
  const uint64_t before = secateur::float_mode();
  secateur::set_float_mode(before | 0x8040);  // flush denormals, as torch.set_flush_denormal does
  size_t strangers = 0;
  for (size_t i = 0; i < 2000 && strangers == 0; ++i) strangers += run_regions(1, unsigned(i), false);
  secateur::set_float_mode(before);
  run_regions(200, 5, false);
  expect(strangers > 0, "workers took part in another mode", strangers);
}
#endif

// Children have no workers; they start their own, whatever the parent's callers were doing.
void test_fork(bool pool_before) {
  std::atomic<bool> stop{false};
  std::vector<std::thread> callers;
  if (pool_before) {
    for (unsigned seed = 10; seed < 12; ++seed) {
      callers.emplace_back([seed, &stop] {
        for (unsigned i = 0; !stop; ++i) run_regions(5, seed * 1000 + i, false);
      });
    }
  }
  for (int i = 0; i < 12; ++i) {
    const Session session(2, 1000);
    const pid_t child = fork();
    if (child == 0) {
      alarm(60);
      failed = 0;
      const bool fresh = Pool::instance().state().workers == 0;
      const Session inner(2, 1000);
      size_t strangers = 0;
      for (int j = 0; j < 4000 && strangers == 0; ++j) strangers += run_regions(5, unsigned(i * 5000 + j), true);
      _exit(failed > 0 ? 1 : !fresh ? 2 : strangers == 0 ? 3 : 0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child of a fork", size_t(status));
    if (pool_before) run_regions(3, unsigned(i), true);
  }
  stop = true;
  for (std::thread& caller : callers) caller.join();
}

}  // namespace

// `no-fork` leaves the forks out.
int main(int count, char**) {
  const bool fork_too = count < 2;
  Pool::instance().insist(true);  // however busy this machine is
  if (fork_too) test_fork(false);
  run_regions(4000, 1, true);
  test_several_callers();
  test_slow_workers();
#if defined(__x86_64__)
  test_float_mode();
#endif
  if (fork_too) test_fork(true);
  const size_t workers = Pool::instance().state().workers;
  expect(workers > 0 && workers < 6, "workers", workers);
  const bool ok = failed == 0 && passed > 0;
  std::printf("%d passed, %d failed\n", passed.load(), failed.load());
  std::fflush(stdout);
  // The process ends while regions run.
  std::thread([] { run_regions(1000000, 7, true); }).detach();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  return ok ? 0 : 1;
}

#endif
