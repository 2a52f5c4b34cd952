// Private to this room: the kernels of a layer's step. Device pointers; sizes as in mamba1_step.h.
#pragma once
#include "krait/tensor/cuda/few_rows.h"

namespace krait::cuda {

constexpr int kStepTaps = 4, kStepStates = 16, kStepMostRank = 256;

// u, z (M, E) from the norm of the stream (M, D) float32, or where `norm` is null from what is normed already, in
// the type of in_proj. conv_state (M, E, 4), in that type too, moves on.
struct StepInProj {
  FewRows product;
  const float* norm = nullptr;
  float eps = 0;
  const float *taps = nullptr, *bias = nullptr;       // bias may be null
  void *state = nullptr, *u = nullptr, *z = nullptr;  // in the type of in_proj
};
void step_in_proj(const StepInProj& p, void* stream);

// y (M, E) from dt_B_C (M, R + 2N) float32, u and z; state (M, E, N) moves on.
struct StepScan {
  int64_t M = 0, E = 0, R = 0;
  bool bf16 = false;  // dt_proj, u, z, y; else float32
  const void* dt_proj = nullptr;
  const float *dt_B_C = nullptr, *dt_bias = nullptr, *A_log = nullptr, *D = nullptr;
  const void *u = nullptr, *z = nullptr;
  void* state = nullptr;
  bool state_bf16 = false;
  void* y = nullptr;
};
void step_scan(const StepScan& p, void* stream);

// The same where dt_B_C is not there yet, but x_proj (R + 2N, E) that makes it of u: all in bfloat16, for sizes that
// step_joins takes.
constexpr int64_t kStepJoinedRows = 2, kStepJoinedChannels = 2048, kStepJoinedRank = 96;
constexpr bool step_joins(int64_t M, int64_t E, int64_t R) {
  return M <= kStepJoinedRows && E <= kStepJoinedChannels && R <= kStepJoinedRank;
}
void step_low_rank_scan(const void* x_proj, const StepScan& p, void* stream);

// step_scan is the faster one up to so many rows.
constexpr int64_t kMostStepScanRows = 2;

// The same in bfloat16 for more rows; normed (M, D) is scratch.
void step_in_proj_rows(const StepInProj& p, void* normed, void* stream);
void step_scan_rows(const StepScan& p, void* stream);

}  // namespace krait::cuda
