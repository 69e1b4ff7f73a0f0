// What the pool asks the processor and the system.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>

#if defined(__linux__)
#include <sched.h>
#endif

namespace secateur {

// min(processors, those that this process may run on, the quota of its control groups rounded up); at least 1.
size_t usable_threads();

// The quota alone, as whole threads; 0 where there is none. The files are looked up under `root`, for tests.
size_t quota_threads(const std::string& root = "");

inline uint64_t now_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

// The processor that this thread runs on, or -1 where the system does not say.
inline int this_cpu() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

// How this thread rounds, and whether it flushes denormals: a piece must give the same bits on every thread.
inline uint64_t float_mode() {
#if defined(__x86_64__)
  return __builtin_ia32_stmxcsr() & ~uint64_t(0x3f);  // without the flags of past operations
#elif defined(__aarch64__)
  uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
#else
  return 0;
#endif
}

inline void set_float_mode(uint64_t mode) {
  if (mode == float_mode()) return;
#if defined(__x86_64__)
  __builtin_ia32_ldmxcsr(static_cast<unsigned>(mode));
#elif defined(__aarch64__)
  asm volatile("msr fpcr, %0" : : "r"(mode));
#endif
}

}  // namespace secateur
