// Private to this room: the hot loops of conv1d_causal, compiled once per instruction set.
#pragma once
#include <cstdint>

#include "krait/base/isa.h"

namespace krait {

constexpr int kConvMaxWidth = 8;
constexpr int64_t kConvBlock =
    512;  // most channels of one run: what the loops keep between rows fits L1

// One call. Rows are tokens, all B*L of them in memory order; where time runs backwards, those of one
// sequence (see op.cpp), from its last, at negative distances.
struct ConvProblem {
  int width = 0;
  bool silu = false;
  bool bf16 = false;        // x, y and their gradients; else float32
  bool state_bf16 = false;  // states of forward and step; else float32
  int64_t E = 0, K = 0;
  const void* x = nullptr;
  int64_t x_stride = 0;         // elements between rows
  const float* k = nullptr;     // (E, W), read by `step`
  const float* taps = nullptr;  // (W, E), read by the others
  const float* bias = nullptr;  // (E) or null
  void* y = nullptr;
  int64_t y_stride = 0;  // of y and dy: E or -E
  // backward
  const void* dy = nullptr;  // or null: zero
  void* dx = nullptr;        // or null: not wanted
  int64_t dx_stride = 0;
  bool dx_add = false;
};

// Tokens [from, to) and channels [e0, e1) of the sequence [begin, end).
struct ConvRun {
  int64_t begin = 0, end = 0, from = 0, to = 0, e0 = 0, e1 = 0;
  const void* state_in = nullptr;  // (E, K) or null: zero
  // backward
  const float* dstate_out = nullptr;  // (E, K) or null
  float* dhistory =
      nullptr;            // (W-1, E): gradient of the inputs before `begin`, oldest first; or null
  float* sums = nullptr;  // (W+1, E): dk by tap, then dbias; added to; or null
};

struct ConvKernels {
  void (*forward)(const ConvProblem&, const ConvRun&);
  // A sequence of one token, K = W or W-1: y, and its state moved on into state_out or null, which may be
  // state_in's memory.
  void (*step)(const ConvProblem&, const ConvRun&, void* state_out);
  void (*backward)(const ConvProblem&, const ConvRun&);
};

KRAIT_DECLARE_ISA(ConvKernels, conv_kernels)

}  // namespace krait
