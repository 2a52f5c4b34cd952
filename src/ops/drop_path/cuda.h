// Private to this room: drop_path_add on the GPU.
#pragma once
#include <cstdint>

namespace krait::cuda {

// What each of B rows of n elements is multiplied by: 1 where p is 0, else 0 or 1 / (1 - p).
struct DropPathRows {
  uint64_t seed, stream;
  const uint64_t* offset;  // added to stream when the kernel runs, or null
  float p;
  int64_t B, n;
};

// y = stream + x · the scale of the row.
void drop_path_forward(const DropPathRows& rows, const void* x, bool bf16, const float* stream_in,
                       float* y, void* stream);
// dx (+)= dy · the scale of the row.
void drop_path_backward(const DropPathRows& rows, const float* dy, void* dx, bool bf16, bool add,
                        void* stream);

}  // namespace krait::cuda
