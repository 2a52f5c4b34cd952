// y = x w / rms(x), as a decoded token needs it.
#pragma once
#include <cstdint>

namespace krait::cuda {

struct StepNorm {
  const float *x = nullptr, *w = nullptr;  // (M, D), (D); D a multiple of 4, 16 bytes aligned
  void* y = nullptr;                       // (M, D) bfloat16
  int64_t M = 0, D = 0;
  float eps = 0;
};

// Starts while the kernel before it in the stream still runs: that one must not write w.
void step_norm(const StepNorm& p, void* stream);

}  // namespace krait::cuda
