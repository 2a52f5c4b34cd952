// Private to this room: mamba3_steps on the GPU.
#pragma once
#include <cstdint>

namespace krait::cuda {

// Rows of H float32 at one distance.
struct StepRows {
  float* data = nullptr;
  int64_t stride = 0;
  bool add = false;  // of gradients
};

struct StepsCall {
  int64_t rows = 0, H = 0;
  StepRows raw_dt, raw_A, dt, adt;
  const float* dt_bias = nullptr;
  float floor = 0;
  bool heavy_tailed = false;
};
void mamba3_steps(const StepsCall& c, void* stream);

constexpr int64_t kStepsRows = 64;  // of a piece

struct StepsBackward {
  StepsCall c;
  StepRows ddt, dadt;        // data null: zero
  StepRows draw_dt, draw_A;  // data null: not wanted
  float* sums = nullptr;     // (pieces, H): of the gradient of raw_dt
};
void mamba3_steps_backward(const StepsBackward& b, void* stream);

}  // namespace krait::cuda
