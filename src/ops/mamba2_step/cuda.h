// Private to this room: the kernels of a layer's step, all in bfloat16. Device pointers; sizes as in mamba2_step.h.
#pragma once
#include "krait/ops/step_stack.h"
#include "krait/tensor/cuda/one_pass.h"

namespace krait::cuda {

constexpr int kStep2Channels = 64;  // P

// z (M, E), xBC (M, E + 2N) bfloat16, dt (M, H) float32 from the norm of the stream (M, D) float32, or where `norm` is
// null from what is normed already, in bfloat16; conv_state (M, E + 2N, 4) moves on.
struct Step2InProj {
  FewRows product;
  const float* norm = nullptr;
  float eps = 0;
  int64_t E = 0, N = 0;
  const float *taps = nullptr, *bias = nullptr;  // bias may be null
  void *state = nullptr, *z = nullptr, *xBC = nullptr;
  float* dt = nullptr;
};
void step2_in_proj(const Step2InProj& p, void* stream);

// Whether in_proj (rows, D) norms M rows of x itself.
bool step2_norms(int64_t M, int64_t rows, int64_t D);

// Whether the states of a channel fit a warp.
constexpr bool step2_takes(int64_t N, bool state_bf16) {
  return N == 64 || N == 128 || (N == 256 && state_bf16);
}

// y (M, E) = w v and in `squares` (M, squares_of(M, ...)) sums of v², v = (S C + D x) silu(z); state (M, H, P, N)
// moves on.
struct Step2State {
  int64_t M = 0, H = 0, N = 0;
  const void *xBC = nullptr, *z = nullptr;
  const float *dt = nullptr, *dt_bias = nullptr, *A_log = nullptr, *D = nullptr, *w = nullptr;
  bool D_per_channel = false;
  float dt_low = 0, dt_high = 0;
  void* state = nullptr;
  bool state_bf16 = false;
  void* y = nullptr;
  float* squares = nullptr;
};
int64_t step2_squares(int64_t M, int64_t H, int64_t N, bool state_bf16);  // of a row
void step2_state(const Step2State& p, void* stream);

// stream (M, D) += out_proj y / sqrt(mean v² + eps)
struct Step2OutProj {
  FewRows product;
  const float* squares = nullptr;
  int64_t squares_of_row = 0;
  float eps = 0;
  float* stream = nullptr;
};
void step2_out_proj(const Step2OutProj& p, void* stream);

// All layers for one sequence, in one kernel that has the GPU for itself: of E = 2 D and N = 128, for sizes that
// has_step2_stack takes. The stream (D) is overwritten; messages: step2_stack_messages(D) times 8 bytes of scratch.
struct Step2StackLayer {
  const void *in_proj = nullptr, *out_proj = nullptr;
  const float *norm = nullptr, *taps = nullptr, *bias = nullptr, *dt_bias = nullptr,
              *A_log = nullptr, *D = nullptr, *gate_norm = nullptr;
  bool D_per_channel = false;
  float eps = 0, gate_eps = 0, dt_low = 0, dt_high = 0;
  void *conv_state = nullptr, *state = nullptr;
};
constexpr int kStack2States = 128;
using Step2Stack = StackCall<Step2StackLayer>;
constexpr int64_t step2_stack_messages(int64_t D) {  // x, y, B and C, twice 128 sums of squares
  if (D == kClusterWidth) return kClusterMessages;
  return D / 2 + D + kStack2States + 2 * 128;
}
bool has_step2_stack(int64_t D, bool state_bf16);
void step2_stack(const Step2Stack& p, void* stream);
// Where D is kClusterWidth.
bool has_step2_cluster(int64_t D, bool state_bf16);
void step2_cluster(const Step2Stack& p, void* stream);

}  // namespace krait::cuda
