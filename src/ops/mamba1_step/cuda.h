// Private to this room: the kernels of a layer's step. Device pointers; sizes as in mamba1_step.h.
#pragma once
#include "krait/ops/step_stack.h"
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

// All layers in one kernel that has the GPU for itself, in bfloat16, of E = 2 D and R = D / 16. The stream (B, D) is
// overwritten.
struct StepStackLayer {
  const void *in_proj = nullptr, *x_proj = nullptr, *dt_proj = nullptr, *out_proj = nullptr;
  const float *norm = nullptr, *taps = nullptr, *bias = nullptr, *dt_bias = nullptr,
              *A_log = nullptr, *D = nullptr;
  float eps = 0;
  void *conv_state = nullptr, *state = nullptr;
};
using StepStack = StackCall<StepStackLayer>;
// Words of scratch for its messages, 0 where the calling thread's device has no such kernel for these sizes.
int64_t step_stack_words(int64_t D, int64_t B, bool state_bf16);
void step_stack(const StepStack& p, void* stream);

// One sequence's messages, of 8 bytes: of 128 blocks x, squares, x_proj u and its parts, y.
constexpr int64_t step_stack_messages(int64_t D) {
  if (D == kClusterWidth) return kClusterMessages;
  return D / 2 + 128 + 129 * (D / 16 + 2 * kStepStates) + D;
}
// One sequence where D is kClusterWidth.
bool has_step_cluster(int64_t D, bool state_bf16);
void step_cluster(const StepStack& p, void* stream);
// Up to kMostBatchRows sequences where D is kBatchWidth.
constexpr int64_t kBatchWidth = 2048, kMostBatchRows = 16;
int64_t step_batch_words(int64_t B, bool state_bf16);
void step_batch(const StepStack& p, void* stream);

}  // namespace krait::cuda
