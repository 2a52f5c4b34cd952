// Private to selective_scan: what op.cpp hands to cuda_forward.cu and cuda_backward.cu. Device pointers and sizes.
#pragma once
#include <cstdint>

namespace krait::ops::scan {

// Rows over all tokens of a tensor of float32 or bfloat16.
struct CudaRows {
  void* data = nullptr;  // null: absent, or not wanted
  int64_t stride = 0;    // elements from token to token
  int64_t group = 0;     // elements from group to group, B and C only
  bool bf16 = false;
  bool add = false;  // gradients: add to what is there
  bool by4 = false;  // set by the launcher: four columns can be moved at once
};

struct CudaProblem {
  int64_t tokens = 0, L = 0, E = 0, N = 0, G = 1, sequences = 0;
  const int64_t* begin = nullptr;  // packed: borders of the sequences; null: rows of L tokens
  const int32_t *row_in = nullptr, *row_out = nullptr;  // packed: rows of the states
  // Set: the rows are given from the last token on, with negative strides, so that sequences come in reverse, too.
  bool reverse = false;
  bool softplus = true, a_is_log = false, constant_B = false, constant_C = false;
  CudaRows u, dt, z, B, C;
  const float *A = nullptr, *D = nullptr, *dt_bias = nullptr, *state_in = nullptr;

  constexpr int64_t row_of(int64_t sequence) const {
    return reverse ? sequences - 1 - sequence : sequence;
  }
};

struct CudaForward {
  CudaProblem p;
  CudaRows y;
  float* state_out = nullptr;
  // The state before step i * interval of a sequence that begins at token s goes to row
  // s / interval + i - 1 of (tokens / interval, E, N). Null: not kept.
  float* saved = nullptr;
  float* scratch = nullptr;  // cuda_forward_scratch floats
};

// A gradient of a small contiguous float32 tensor; to null: not wanted.
struct CudaSum {
  float* to = nullptr;
  bool add = false;
};

// One step of every sequence, after which there is nothing to save: a case of cuda_scan_forward.
void cuda_scan_step(const CudaForward& w, void* stream);

struct CudaBackward {
  CudaProblem p;
  const float* saved = nullptr;
  CudaRows dy;                        // data null: zero
  const float* dstate_out = nullptr;  // null: zero
  CudaRows du, ddt, dz, dB, dC;       // dB, dC: where they vary over time
  CudaRows y;                         // out, where cuda_remakes_y; data null: not wanted
  CudaSum dA, dB_constant, dC_constant, dD, ddt_bias, dstate_in;
  int64_t state_rows = 0;    // of state_in
  float* scratch = nullptr;  // cuda_backward_scratch floats
};

// Steps between two saved states.
constexpr int64_t cuda_saved_interval(int64_t N) { return N <= 128 ? 32 : 16; }

// Whether cuda_scan_backward can write y, given dy and where du, ddt and dz go.
bool cuda_remakes_y(const CudaProblem& p);
int64_t cuda_forward_scratch(const CudaProblem& p);
int64_t cuda_backward_scratch(const CudaProblem& p);
void cuda_scan_forward(const CudaForward& w, void* stream);
void cuda_scan_backward(const CudaBackward& w, void* stream);

}  // namespace krait::ops::scan
