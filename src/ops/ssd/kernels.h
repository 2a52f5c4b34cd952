// Private to ssd: what op.cpp hands to cpu_simd.cpp. Plain structs of pointers.
//
// A piece of work is a set of neighbouring heads of one group, over one sequence: they share the products
// of B and C. Inside a kernel rows are padded with zeros to whole vectors (padded()).
#pragma once
#include <cstdint>

#include "krait/base/isa.h"
#include "krait/ops/rows.h"

namespace krait::ops::ssd_cpu {

constexpr int64_t kChunk = 64;    // tokens of a chunk; see ssd.h
constexpr int64_t kShort = 8;     // sequences up to here are stepped
constexpr int64_t kHeadSet = 6;   // heads of a piece of work at most
constexpr int64_t kPadding = 16;  // floats; a multiple of every instruction set's vector

// `heads` heads of one sequence. Pointers are those of the first head.
struct Piece {
  int64_t tokens = 0, heads = 0, P = 0, N = 0;
  bool softplus = true;
  bool pairs = false;  // x, B, C and y are bfloat16, and has_pairs: products are of bfloat16 pairs
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
  // padded(P)), of float32 or, with `pairs`, rounded to bfloat16 as the products take it. Null: not kept.
  void* saved = nullptr;
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
  const void* saved = nullptr;        // as in Forward
  int64_t saved_stride = 0;
  float* sums = nullptr;     // (heads, sums_size(P)): dA, ddt_bias, dD (P), written
  float* scratch = nullptr;  // backward_scratch(P, N) floats
};

// Sums over sets of heads: parts (sets, tokens, N), sets at a distance.
struct SetSums {
  const float* parts = nullptr;
  int64_t sets = 0, distance = 0, tokens = 0, N = 0;
  GradRows to;
};

// Sizes in floats. Static, so that no instruction set's copy is used by code for another.
static constexpr int64_t padded(int64_t n) { return (n + kPadding - 1) / kPadding * kPadding; }
static constexpr int64_t sums_size(int64_t P) { return 2 + P; }
static constexpr int64_t kTimes = 6;  // rows of one value a token
static constexpr int64_t more(int64_t a, int64_t b) { return a > b ? a : b; }
static constexpr int64_t forward_scratch(int64_t P, int64_t N) {
  const int64_t Pp = padded(P), Np = padded(N), half = (N + 1) / 2;
  return kHeadSet * N * Pp + kChunk * kChunk + 2 * kChunk * Pp + Pp  // states, C Bᵀ, x, y, D
         + (kTimes + 1) * kChunk
         // Products: B, C, Bᵀ, scores, Δx, or as words B, C, B in pairs, Bᵀ, scores, Δx, a state.
         + more(2 * kChunk * Np + N * kChunk + kChunk * kChunk + kChunk * Pp,
                kChunk / 2 * (3 * Np + Pp + kChunk) + half * (kChunk + Pp));
}
static constexpr int64_t backward_scratch(int64_t P, int64_t N) {
  const int64_t Pp = padded(P), Np = padded(N), half = (N + 1) / 2;
  return (kHeadSet + 1) * N * Pp         // gradients of the states, a state
         + kChunk * Np + 3 * kChunk * N  // rows; Cᵀ, gradients of Bᵀ, Cᵀ
         + 4 * kChunk * kChunk           // C Bᵀ, scores, their gradients
         + 3 * kChunk * Pp               // x, dy, dX
         + (kTimes + 4) * kChunk +
         Pp
         // Products: B, C, Bᵀ, xᵀ, dyᵀ, scaled rows, a state times them, or as words B, C and both in pairs, x, dy
         // and both transposed, two pairs of dy, Bᵀ, scores; a state's gradient in pairs, that and a state as rows.
         + more(2 * kChunk * Np + 2 * N * kChunk + 3 * kChunk * Pp,
                kChunk / 2 * (4 * Np + 6 * Pp + kChunk) + half * (kChunk + Pp) + N * Pp);
}

struct Kernels {
  bool (*has_pairs)();  // whether this processor multiplies pairs of bfloat16 (Piece::pairs)
  void (*chunked)(const Forward&);
  void (*step)(const Forward&);  // tokens <= kShort
  void (*backward)(const Backward&);
  void (*sum_sets)(const SetSums&);
};

}  // namespace krait::ops::ssd_cpu

namespace krait {
KRAIT_DECLARE_ISA(ops::ssd_cpu::Kernels, ssd_kernels)
}
