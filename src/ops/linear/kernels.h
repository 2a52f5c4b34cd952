// The hot loops of linear: few rows of x against weights read once, and sums over rows.
#pragma once
#include <cstdint>

#include "krait/base/isa.h"

namespace krait::ops {

// y[m, n] = Σ_k x[m, k] w[n, k] (+ bias[n]) (+ plus[m, n]) for n in [begin, end). Steps are in elements.
struct FewRows {
  const void* w;  // (N, K), dense
  int64_t K;
  const float* x;  // (M, K) in float32; for bfloat16 weights as `arrange` writes it
  int64_t x_step, M;
  void* y;
  int64_t y_step;
  bool y_bf16;
  const float* bias;  // or null
  const float* plus;  // or null
  int64_t plus_step;
  int64_t begin, end;
};

// Rows of arranged x are padded with zeros to a multiple of this: twice the lanes of the widest vector.
constexpr int64_t kArrangeUnit = 32;

struct LinearKernels {
  void (*few_rows_f32)(const FewRows&);
  void (*few_rows_bf16)(const FewRows&);
  // One row of x (K, float32 or bfloat16), rounded to bfloat16, as few_rows_bf16 of this processor wants it:
  // in bfloat16, or in float32 with, in each run of two vectors, first the even and then the odd elements,
  // as pairs of bfloat16 weights come apart.
  void (*arrange)(const void* x, bool x_bf16, int64_t K, float* out);
  // out[i] (+)= Σ_r rows[r, i], i in [0, n), in float32, r ascending.
  void (*sum_rows_f32)(const void* rows, int64_t step, int64_t count, int64_t n, float* out,
                       bool add);
  void (*sum_rows_bf16)(const void* rows, int64_t step, int64_t count, int64_t n, float* out,
                        bool add);
};

}  // namespace krait::ops

namespace krait {
KRAIT_DECLARE_ISA(ops::LinearKernels, linear_kernels)
}
