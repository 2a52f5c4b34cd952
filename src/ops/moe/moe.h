// A mixture of experts in four steps: each token takes its k best experts, rows are sorted by expert,
// each expert multiplies its rows, and the results are weighted and summed.
//
//   p = softmax(x Wᵀ)                          (T, n), product and softmax in float32
//   weight[t, j] = p[t, e_j], e_j the j-th best (ties: the lower number); optionally divided by their sum
//   y[t] = Σ_j weight[t, j] · expert_{e_j}(x[t])
//
// With a capacity C = min(int(capacity_factor · T k / n), T) an expert takes its first C tokens in order and
// drops the others: they get nothing from it. Load-balancing loss: balance · n · Σ_e f_e mean_t p[t, e], f_e
// the number of choices of e, dropped ones too, over T.
// Fedus et al. 2021 (Switch), sections 2.1 and 2.2; Pióro et al. 2024 (MoE-Mamba); Jamba: k = 2, weights
// not divided.
//
// Gradients: of the router's x and w through the weights and the balance loss (f_e is a constant), of x, w and
// y of the other steps. Saved for backward: p, the inputs of each step. Sums run in a fixed order:
// the same bits for any number of threads.
#pragma once
#include "krait/tensor/context.h"

namespace krait::ops {

struct RouteOptions {
  int64_t k = 1;
  bool renormalize = false;
  double capacity_factor = 0;  // 0: no limit, nothing is dropped
  float balance = 0;           // weight of the load-balancing loss
  // the share of that loss in what is differentiated (1 / micro-batches)
  float balance_gradient = 1;
};

// The result of routing: M = T k rows sorted by expert. Rows past begin[n] belong to nobody.
struct Routing {
  Tensor weight;  // (T, k) float32, a variable where recorded
  Tensor expert;  // (T, k) int32
  Tensor row;     // (T, k) int32: the row of a choice, -1 where dropped
  Tensor token;   // (M) int32: the token of a row, -1 past the end
  Tensor begin;   // (n + 1) int64: expert e has the rows [begin[e], begin[e + 1])
};

// x (..., D) float32 or bfloat16, rows at one distance; w (n, D) float32 or, `in_first`, (D, n). `report` (2)
// float32, optional: the balance loss and the number of choices dropped.
Routing route(Context& c, const Tensor& x, const Tensor& w, bool in_first,
              const RouteOptions& options, const Tensor& report = {});

// x (..., D) -> (M, D), its tokens in the order of the rows; rows past the end are zero.
Tensor dispatch(Context& c, const Tensor& x, const Routing& routing);

// y[r] = x[r] Wᵀ with the w of the expert whose row it is. x (M, K); w (n, N, K), or, `in_first`, (n, K, N)
// and y = x W. y (M, N) in `out`; rows past the end are zero. dw is float32.
Tensor expert_linear(Context& c, const Tensor& x, const Tensor& w, const Routing& routing,
                     bool in_first, DType out);

// stream[t] + Σ_j weight[t, j] · y[row[t, j]]. y (M, D), stream (..., D) float32; a sum over the stream
// (Tape::watch_sum).
Tensor combine(Context& c, const Tensor& y, const Routing& routing, const Tensor& stream);

}  // namespace krait::ops
