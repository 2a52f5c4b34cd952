// Private to ssd: what gpu.cpp hands to the CUDA kernels. Device pointers and sizes.
#pragma once
#include <cstdint>

namespace krait::ops::ssd_gpu {

// Rows over all tokens of a tensor of float32 or bfloat16.
struct CudaRows {
  void* data = nullptr;  // null: absent (zero), or not wanted
  int64_t stride = 0;    // elements from token to token
  bool bf16 = false;
  bool add = false;   // gradients: add to what is there
  bool runs = false;  // 16 bytes can be moved at once
};

struct CudaProblem {
  int64_t tokens = 0, L = 0, H = 0, P = 0, N = 0, G = 1;
  int64_t sequences = 0, longest = 0;
  const int64_t* begin = nullptr;  // packed: borders of the sequences; null: rows of L tokens
  const int32_t *row_in = nullptr, *row_out = nullptr;  // packed: rows of the states
  bool softplus = true, a_is_log = false, D_per_channel = false;
  bool matrix_units = false;  // products of bfloat16 operands; see ssd.h
  float dt_min = 0, dt_max = 0;
  CudaRows x, dt, B, C;
  const float *A = nullptr, *D = nullptr, *dt_bias = nullptr, *state_in = nullptr;
};

// Sequences are cut from their first token on into units of `unit` tokens; each has a slot of its own among
// slots(p, unit), some of which stay empty where sequences are packed.
constexpr int64_t slots(const CudaProblem& p, int64_t unit) {
  return p.begin ? p.tokens / unit + p.sequences : p.sequences * ((p.L + unit - 1) / unit);
}

// Whether the device has the shared memory that N states take on matrix units.
bool matrix_units_fit(int64_t N);

constexpr int64_t kShort = 8;  // tokens of a sequence that is stepped
constexpr int64_t chunk_of(bool matrix_units) { return matrix_units ? 64 : 32; }

// A gradient of a small contiguous float32 tensor; to null: not wanted.
struct CudaSum {
  float* to = nullptr;
  bool add = false;
};

// Floats of what forward can leave to backward of its steps and states, which is then not computed again; else 0.
int64_t kept_size(const CudaProblem& p);

struct CudaForward {
  CudaProblem p;
  CudaRows y;
  float* kept = nullptr;  // kept_size floats, or null
  float* state_out = nullptr;
  float* scratch = nullptr;  // forward_scratch floats
};

int64_t forward_scratch(const CudaProblem& p);
void ssd_forward(const CudaForward& w, void* stream);

struct CudaBackward {
  CudaProblem p;
  CudaRows dy;                        // data null: zero
  const float* dstate_out = nullptr;  // null: zero
  float* kept = nullptr;              // what forward has left there
  CudaRows dx, ddt, dB, dC;
  CudaSum dA, dD, ddt_bias, dstate_in;
  int64_t state_rows = 0;    // of state_in
  float* scratch = nullptr;  // backward_scratch floats
};

int64_t backward_scratch(const CudaBackward& w);
void ssd_backward(const CudaBackward& w, void* stream);

}  // namespace krait::ops::ssd_gpu
