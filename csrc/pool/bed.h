// Where one thread sleeps until another wakes it.
#pragma once

#include <atomic>
#include <cstdint>

// SECATEUR_NO_FUTEX: so that Linux can test what other systems run.
#if defined(__linux__) && !defined(SECATEUR_NO_FUTEX)
#define SECATEUR_FUTEX 1
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#define SECATEUR_FUTEX 0
#include <condition_variable>
#include <mutex>
#endif

namespace secateur {

class Bed {
 public:
  // From now on wake() counts. The sleeper looks once more for what it waits for, then sleeps or gets up.
  void lie_down() { down_.store(1, std::memory_order_seq_cst); }
  void get_up() { down_.store(0, std::memory_order_relaxed); }
  bool occupied() const { return down_.load(std::memory_order_relaxed) != 0; }

#if SECATEUR_FUTEX
  void sleep() {
    while (down_.load(std::memory_order_acquire) != 0) call(FUTEX_WAIT_PRIVATE, 1);
  }
  // True for the one caller that woke the sleeper.
  bool wake() {
    if (down_.load(std::memory_order_seq_cst) == 0 || down_.exchange(0) == 0) return false;
    call(FUTEX_WAKE_PRIVATE, 1);
    return true;
  }

 private:
  // Every outcome of a wait (woken, interrupted, too late) is answered by the loop.
  void call(int operation, int value) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&down_), operation, value, nullptr, nullptr, 0);
  }
  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "the kernel reads a plain word");
#else
  void sleep() {
    std::unique_lock<std::mutex> lock(mutex_);
    woken_.wait(lock, [this] { return down_.load(std::memory_order_acquire) == 0; });
  }
  bool wake() {
    if (down_.load(std::memory_order_seq_cst) == 0) return false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (down_.exchange(0) == 0) return false;
    }
    woken_.notify_one();
    return true;
  }

 private:
  std::mutex mutex_;
  std::condition_variable woken_;
#endif
  std::atomic<uint32_t> down_{0};
};

}  // namespace secateur
