#include "gomp.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <string>

#include "machine.h"

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#endif

namespace secateur {
namespace {

struct Team {
  size_t pieces;
  size_t threads;
  Work work;
  void* context;
  uint64_t mode;
  std::atomic<size_t> next{0};
};

// However many threads the runtime gives, one is enough: each takes what is left.
void take_part(void* data) {
  Team& team = *static_cast<Team*>(data);
  const uint64_t mode = float_mode();
  set_float_mode(team.mode);
  for (size_t begin = team.next.load(std::memory_order_relaxed); begin < team.pieces;) {
    const size_t end = begin + std::max<size_t>(1, (team.pieces - begin) / (4 * team.threads));
    if (!team.next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
    for (size_t piece = begin; piece < end; ++piece) team.work(team.context, piece);
    begin = team.next.load(std::memory_order_relaxed);
  }
  set_float_mode(mode);  // these threads are torch's
}

#if defined(__linux__)
int keep_torch_path(dl_phdr_info* info, size_t, void* path) {
  const char* name = info->dlpi_name == nullptr ? "" : info->dlpi_name;
  if (std::strstr(name, "libtorch_cpu.so") == nullptr) return 0;
  *static_cast<std::string*>(path) = name;
  return 1;
}

// In the order in which torch's own calls are bound: the global scope, then what libtorch_cpu brought along. Other
// packages may have loaded runtimes of their own, whose threads would be in the way like ours.
void* look_up() {
  if (void* global = dlsym(RTLD_DEFAULT, "GOMP_parallel")) return global;
  std::string path;
  dl_iterate_phdr(keep_torch_path, &path);
  void* torch = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  return torch == nullptr ? nullptr : dlsym(torch, "GOMP_parallel");  // the handle stays open: so does torch
}
#else
void* look_up() { return nullptr; }
#endif

}  // namespace

GompParallel find_gomp() {
  static std::atomic<GompParallel> found{nullptr};  // absence is not kept: torch may come later
  GompParallel parallel = found.load(std::memory_order_relaxed);
  if (parallel == nullptr) {
    parallel = reinterpret_cast<GompParallel>(look_up());
    found.store(parallel, std::memory_order_relaxed);
  }
  return parallel;
}

void run_on_gomp(GompParallel parallel, size_t pieces, size_t threads, Work work, void* context) {
  Team team{pieces, threads, work, context, float_mode()};
  parallel(take_part, &team, static_cast<unsigned>(threads), 0);
}

}  // namespace secateur
