// Private to mamba3_scan: what op.cpp hands to cpu_simd.cpp. Plain structs of pointers, each at the first
// token and at the head (or group) of interest.
//
// Inside a kernel rows over P and N are padded with zeros to multiples of kPad floats.
#pragma once
#include <cstdint>

#include "krait/base/isa.h"
#include "krait/ops/rows.h"

namespace krait::ops::mamba3 {

constexpr int64_t kChunk = 64;  // tokens between two saved states; see mamba3_scan.h
constexpr int64_t kPad = 16;    // floats
constexpr int kHeadsOfSet = 4;  // heads whose dB and dC are summed at once

static constexpr int64_t padded(int64_t n) { return (n + kPad - 1) / kPad * kPad; }

struct Sizes {
  int64_t P = 0, N = 0, R = 1, T = 0;  // T: angles
};

// The state of one head of one sequence; all null: zero, or not wanted.
template <class F>
struct StateOf {
  F* angle = nullptr;  // (T)
  F* ssm = nullptr;    // (P, N)
  F* k = nullptr;      // (R, N), ranks k_stride floats apart
  F* v = nullptr;      // (P)
  int64_t k_stride = 0;
};

// One head of one sequence.
struct Head {
  Sizes size;
  int64_t tokens = 0;
  bool halves = false;
  Rows x, z;                                         // z.data null: no gate
  Rows B, C;                                         // rank 0
  int64_t rank_stride = 0;                           // elements between ranks of B and C
  Rows dt, adt, trap;                                // float32, one column
  Rows angle;                                        // float32
  const float *B_bias = nullptr, *C_bias = nullptr;  // (R, N)
  const float *mimo_x = nullptr, *mimo_z = nullptr, *mimo_o = nullptr;  // (R, P), or null: ones
  const float* norm = nullptr;                                          // (P) or null
  float norm_eps = 0;
  float D = 0;
  StateOf<const float> from;
};

// The state before token kChunk * c is saved at + (c - 1) * stride, c >= 1, saved_size floats.
static constexpr int64_t saved_size(const Sizes& s) { return s.P * s.N + s.R * s.N + s.T; }

struct Forward {
  Head head;
  GradRows y;  // never adds
  StateOf<float> to;
  float* saved = nullptr;  // null: not kept
  int64_t saved_stride = 0;
  float* scratch = nullptr;  // forward_scratch floats
};

// Sums over tokens and sequences for one head, added to what stands there.
struct Sums {
  float *B_bias, *C_bias;           // (R, padded N)
  float *mimo_x, *mimo_z, *mimo_o;  // (R, padded P)
  float *norm, *D;                  // (padded P), one
};

struct HeadGrads {
  GradRows dx, dz, ddt, dadt, dtrap;
  GradRows dangle;  // where each head has its own
  StateOf<const float> dto;
  StateOf<float> dfrom;
  const float* saved = nullptr;
  Sums sums{};
};

// Neighbouring heads of one group, in one sequence.
struct Backward {
  int heads = 0;
  Head head[kHeadsOfSet];
  HeadGrads grads[kHeadsOfSet];
  Rows dy[kHeadsOfSet];  // data null: zero
  int64_t saved_stride = 0;
  // Sums over these heads, (tokens, R, N) and (tokens, T); null: not wanted.
  float *part_dB = nullptr, *part_dC = nullptr, *part_dangle = nullptr;
  float* scratch = nullptr;  // backward_scratch floats
};

// Sizes in floats. Static, so that no instruction set's copy is used by code for another.
static constexpr int64_t sums_size(const Sizes& s) {
  return 2 * s.R * padded(s.N) + (3 * s.R + 1) * padded(s.P) + kPad;
}
static constexpr Sums sums_at(float* p, const Sizes& s) {
  const int64_t n = s.R * padded(s.N), m = s.R * padded(s.P);
  float* q = p + 2 * n;
  return {p, p + n, q, q + m, q + 2 * m, q + 3 * m, q + 3 * m + padded(s.P)};
}
static constexpr int64_t carry_size(const Sizes& s) {
  return padded(s.P) * padded(s.N) + s.R * padded(s.N) + padded(s.P) + padded(s.T);
}
constexpr int64_t kRows = kChunk + 1;  // of a chunk: the token before it, and its own
static constexpr int64_t chunk_size(const Sizes& s) {
  return kRows * (2 * s.R * padded(s.N)         // k, q
                  + padded(s.N)                 // cos, sin
                  + 4 * s.R * padded(s.P)       // v, w, y, gate
                  + 2 * padded(s.P)             // x, z
                  + padded(s.T))                // tanh
         + 8 * (kRows + kPad)                   // a number a token
         + 3 * s.R * padded(s.P) + padded(s.P)  // mimo_*, norm
         + padded(s.N);                         // a row
}
static constexpr int64_t forward_scratch(const Sizes& s) { return carry_size(s) + chunk_size(s); }
static constexpr int64_t backward_scratch(const Sizes& s) {
  return (kHeadsOfSet + 1) * carry_size(s) + chunk_size(s) +
         kRows * 2 * s.R * (padded(s.N) + padded(s.P))   // dq, dk; dy, u
         + kChunk * (2 * s.R * s.N + s.T)                // dB, dC, dangle of a set
         + sums_size(s)                                  // of a chunk
         + 3 * (kRows + kPad)                            // a number a token
         + padded(s.T) + padded(s.N) + 3 * padded(s.P);  // single rows
}

struct Kernels {
  void (*forward)(const Forward&);
  void (*backward)(const Backward&);
};

}  // namespace krait::ops::mamba3

namespace krait {
KRAIT_DECLARE_ISA(ops::mamba3::Kernels, mamba3_scan_kernels)
}
