#include "probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <thread>

#include "machine.h"

namespace secateur {
namespace {

// A chain of multiplications: as long on every processor, and never stalled by memory.
uint64_t work_for(size_t steps, uint64_t state) {
  for (size_t i = 0; i < steps; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    asm volatile("" : "+r"(state));
  }
  return state;
}

// Not atomic: two threads on one piece are a race, for the thread sanitizer to see.
struct alignas(64) Slot {
  size_t runs = 0;
  size_t helped = 0;
  uint64_t state = 0;
};

struct Board {
  std::vector<Slot> slots;
  size_t steps;
  std::thread::id caller;
};

void run_piece(void* context, size_t piece) {
  Board& board = *static_cast<Board*>(context);
  Slot& slot = board.slots[piece];
  ++slot.runs;
  if (board.steps == 0) return;
  slot.helped += std::this_thread::get_id() != board.caller;
  slot.state = work_for(board.steps, slot.state);
}

}  // namespace

double probe_speed() {
  static std::atomic<double> kept{0};  // see pool.cpp for what a local static with an initialiser does to forks
  double speed = kept.load(std::memory_order_relaxed);
  if (speed > 0) return speed;
  constexpr size_t steps = 100000;
  uint64_t best = ~uint64_t(0), state = 1;
  for (int i = 0; i < 30; ++i) {
    const uint64_t start = now_ns();
    state = work_for(steps, state);
    best = std::min(best, now_ns() - start);
  }
  speed = steps * 1000.0 / static_cast<double>(std::max<uint64_t>(best, 1));
  kept.store(speed, std::memory_order_relaxed);
  return speed;
}

ProbeResult run_probe(const Probe& probe, size_t programs) {
  Board board{std::vector<Slot>(probe.pieces), static_cast<size_t>(probe.piece_us * probe_speed()),
              std::this_thread::get_id()};
  ProbeResult result{{}, 0, 0};
  result.program_us.reserve(programs);
  for (size_t i = 0; i < programs; ++i) {
    if (probe.pause_us > 0) std::this_thread::sleep_for(std::chrono::duration<double, std::micro>(probe.pause_us));
    const uint64_t start = now_ns();
    {
      std::optional<Session> session;
      if (probe.program_us >= 0) session.emplace(probe.backend == Backend::own ? probe.threads : 1, probe.program_us);
      for (size_t region = 0; region < probe.regions; ++region) {
        Pool::instance().parallel_for(probe.pieces, probe.threads, run_piece, &board, probe.work_us, probe.backend);
      }
    }
    result.program_us.push_back(static_cast<double>(now_ns() - start) / 1000.0);
  }
  for (const Slot& slot : board.slots) {
    const size_t wanted = programs * probe.regions;
    result.wrong += slot.runs > wanted ? slot.runs - wanted : wanted - slot.runs;
    result.helped += slot.helped;
  }
  return result;
}

}  // namespace secateur
