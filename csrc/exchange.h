// How the memory of a tensor is found without linking torch: DLPack's exchange table (DLPack 1.2; torch 2.10 and
// later), one C call per tensor. The structs follow the published ABI of DLPack, https://dmlc.github.io/dlpack.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace secateur {

struct DlTensor {
  void* data;
  struct {
    int32_t type;
    int32_t id;
  } device;
  int32_t ndim;
  struct {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
  } dtype;
  const int64_t* shape;
  const int64_t* strides;
  uint64_t byte_offset;
};

struct DlExchange {
  struct {
    uint32_t major;
    uint32_t minor;
    const DlExchange* previous;
  } header;
  void* managed_allocator;
  void* managed_from_object;
  void* managed_to_object;
  int (*tensor_from_object)(void* object, DlTensor* out);  // borrowed: valid while the object lives untouched
  void* current_stream;
};

// A tensor that the kernels may touch: floating, on the CPU, dense in row-major order, of exactly this shape.
inline bool fits(const DlTensor& tensor, const std::vector<int64_t>& shape) {
  constexpr int32_t cpu = 1;
  constexpr uint8_t floating = 2, brain = 4;
  if (tensor.device.type != cpu || tensor.ndim != static_cast<int32_t>(shape.size())) return false;
  if ((tensor.dtype.code != floating && tensor.dtype.code != brain) || tensor.dtype.lanes != 1) return false;
  if (tensor.dtype.bits != 16 && tensor.dtype.bits != 32 && tensor.dtype.bits != 64) return false;
  bool empty = false, dense = true;
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    if (tensor.shape[d] != shape[d]) return false;
    empty |= shape[d] == 0;
    dense &= shape[d] == 1 || tensor.strides == nullptr || tensor.strides[d] == stride;
    stride *= shape[d];
  }
  return dense || empty;
}

}  // namespace secateur
