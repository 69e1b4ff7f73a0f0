// Memory that each thread keeps between calls: a fresh 200 KB costs more in page faults than a kernel takes.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace secateur {

struct FreeAligned {
  void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
};
using Aligned = std::unique_ptr<float[], FreeAligned>;

inline Aligned aligned_floats(size_t floats) {
  return Aligned(static_cast<float*>(::operator new[](floats * sizeof(float), std::align_val_t{64})));
}

// Uninitialised when it grows, and what the last user left there otherwise. One user at a time and thread.
// Under the address sanitizer every call gets memory of its own, as long as it asked for: what an earlier, larger user
// left would hide writes behind the end.
inline float* scratch(size_t floats) {
#if defined(__SANITIZE_ADDRESS__)
  constexpr bool exact = true;
#else
  constexpr bool exact = false;
#endif
  thread_local Aligned memory;
  thread_local size_t size = 0;
  if (floats > size || exact) {
    memory.reset();
    size = 0;
    memory = aligned_floats(floats);
    size = floats;
  }
  return memory.get();
}

}  // namespace secateur
