// Private to this room: patches on the GPU.
#pragma once
#include <cstdint>

namespace krait::cuda {

struct Patches {
  int64_t B, channels, H, W, rows, columns, size, stride;
};

void patches(const Patches& p, const float* images, float* y, void* stream);

}  // namespace krait::cuda
