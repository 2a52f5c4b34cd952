// Private to ssd: what op.cpp hands to cpu_simd.cpp. Plain structs of pointers.
//
// A piece of work is a set of neighbouring heads of one group, over one sequence: they share the products
// of B and C. Inside a kernel rows are padded with zeros to whole vectors (padded()).
#pragma once
#include <cstdint>

#include "krait/base/isa.h"

namespace krait::ops::ssd_cpu {

constexpr int64_t kChunk = 64;    // tokens of a chunk; see ssd.h
constexpr int64_t kShort = 8;     // sequences up to here are stepped
constexpr int64_t kHeadSet = 4;   // heads of a piece of work
constexpr int64_t kPadding = 16;  // floats; a multiple of every instruction set's vector

// Rows over time of a tensor of float32 or bfloat16, at the first token and column of interest.
struct Rows {
  const void* data = nullptr;
  int64_t stride = 0;  // elements from token to token
  bool bf16 = false;
};

struct GradRows {
  void* data = nullptr;  // null: not wanted
  int64_t stride = 0;
  bool bf16 = false;
  bool add = false;
};

// `heads` heads of one sequence. Pointers are those of the first head.
struct Piece {
  int64_t tokens = 0, heads = 0, P = 0, N = 0;
  bool softplus = true;
  float dt_min = 0, dt_max = 0;
  Rows x, dt;                // columns (heads, P) and (heads)
  Rows B, C;                 // N columns
  const float* A = nullptr;  // (heads)
  const float* D = nullptr;  // (heads) or (heads, P), or null
  bool D_per_channel = false;
  const float* dt_bias = nullptr;   // (heads) or null
  const float* state_in = nullptr;  // (heads, P, N) or null: zero
};

struct Forward {
  Piece piece;
  GradRows y;                  // never adds
  float* state_out = nullptr;  // (heads, P, N) or null
  // The state before token kChunk * i goes to saved + (i - 1) * saved_stride, i >= 1, as (heads, N,
  // padded(P)). Null: not kept.
  float* saved = nullptr;
  int64_t saved_stride = 0;
  float* scratch = nullptr;  // forward_scratch(P, N) floats
};

struct Backward {
  Piece piece;
  Rows dy;  // data null: zero
  GradRows dx, ddt;
  float* part_dB = nullptr;  // (tokens, N): sum over these heads; null: not wanted
  float* part_dC = nullptr;
  const float* dstate_out = nullptr;  // (heads, P, N) or null: zero
  float* dstate_in = nullptr;         // (heads, P, N) or null
  const float* saved = nullptr;       // as in Forward
  int64_t saved_stride = 0;
  float* sums = nullptr;     // (heads, sums_size(P)): dA, ddt_bias, dD (P), written
  float* scratch = nullptr;  // backward_scratch(P, N) floats
};

// Sizes in floats. Static, so that no instruction set's copy is used by code for another.
static constexpr int64_t padded(int64_t n) { return (n + kPadding - 1) / kPadding * kPadding; }
static constexpr int64_t sums_size(int64_t P) { return 2 + P; }
static constexpr int64_t kTimes = 8;  // rows of one value a token
static constexpr int64_t forward_scratch(int64_t P, int64_t N) {
  return kHeadSet * N * padded(P)             // states
         + (2 * kChunk + kChunk) * padded(N)  // B, C, Bᵀ; of bfloat16 pairs two thirds of it
         + 2 * kChunk * kChunk                // C Bᵀ, scores
         + 3 * kChunk * padded(P)             // x, Δx, y
         + (N + 1 + kChunk) / 2 * padded(P)   // pairs of a state and of Δx
         + (kTimes + 1) * kChunk + 2 * padded(P);
}
static constexpr int64_t backward_scratch(int64_t P, int64_t N) {
  return (kHeadSet + 1) * N * padded(P)             // gradients of the states, a state
         + 3 * kChunk * padded(N) + 5 * kChunk * N  // B, C, rows; Bᵀ, Cᵀ, their gradients
         + 4 * kChunk * kChunk                      // C Bᵀ, scores, their gradients
         + 7 * kChunk * padded(P)                   // x, Δx, dy and the like
         + kChunk / 2 *
               (3 * padded(N) + 4 * padded(P) + kChunk)  // pairs of bfloat16: B, C, x, dy, scores,
         + (N + 1) / 2 * padded(P)                       // a state
         + (2 * kTimes + 2) * kChunk + 2 * padded(P);
}

struct Kernels {
  void (*chunked)(const Forward&);
  void (*step)(const Forward&);  // tokens <= kShort
  void (*backward)(const Backward&);
};

}  // namespace krait::ops::ssd_cpu

namespace krait {
KRAIT_DECLARE_ISA(ops::ssd_cpu::Kernels, ssd_kernels)
}
