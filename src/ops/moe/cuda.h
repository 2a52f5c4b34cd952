// Private to this room: a mixture of experts on the GPU. How many rows an expert has is known there alone.
#pragma once
#include <cstdint>

namespace krait::cuda {

// Elements of two types.
struct MoeRows {
  void* data = nullptr;
  bool bf16 = false;
  int64_t row = 0;  // elements between rows
  bool add = false;
};

// As in a Routing: T tokens, k choices each, n experts.
struct MoeRouting {
  int64_t T = 0, n = 0, k = 0;
  float* weight = nullptr;
  int32_t *expert = nullptr, *row = nullptr, *token = nullptr;
  int64_t* begin = nullptr;

  constexpr int64_t rows() const { return T * k; }
};

constexpr int64_t kMoeTokens = 256;  // of a piece
constexpr int64_t moe_pieces(int64_t T) { return (T + kMoeTokens - 1) / kMoeTokens; }

struct MoeRoute {
  MoeRouting r;
  bool renormalize = false;
  int64_t capacity = 0;
  float balance = 0;
  float* p = nullptr;         // (T, n): scores, which become probabilities
  double* slope = nullptr;    // (n): what the balance loss multiplies the sum of p[:, e] by
  int64_t* counts = nullptr;  // scratch (pieces, n)
  double* sums = nullptr;     // scratch (pieces, n)
  float* report = nullptr;    // (2) or null
};
void moe_route(const MoeRoute& c, void* stream);

// dlogits (T, n) from the gradient of the weights (T, k), or null, and that of the balance loss.
struct MoeRouteBackward {
  MoeRoute c;
  const float* dweight = nullptr;
  float balance = 0;
  float* dlogits = nullptr;
};
void moe_route_backward(const MoeRouteBackward& b, void* stream);

// y (rows, D) = x[token of the row], zeros where there is none.
void moe_dispatch(const MoeRouting& r, const MoeRows& x, const MoeRows& y, int64_t D, void* stream);
// dx[t] (+)= Σ_j dy[row[t, j]], j ascending; as to type both are alike.
void moe_dispatch_backward(const MoeRouting& r, const MoeRows& dy, const MoeRows& dx, int64_t D,
                           void* stream);
// out[t] = stream[t] + Σ_j weight[t, j] y[row[t, j]]; rows of D.
void moe_combine(const MoeRouting& r, const MoeRows& y, const float* residual, float* out,
                 int64_t D, void* stream);
// dy[row] (+)= weight dout[t], zeros in rows of nobody; dweight (+)= dout[t] · y[row]. Either data may be null.
void moe_combine_backward(const MoeRouting& r, const MoeRows& y, const float* dout,
                          const MoeRows& dy, float* dweight, bool add_dweight, int64_t D,
                          void* stream);

// c (M, N) (+)= a (M, K) b_e (K, N) for the rows of each expert e; zeros in rows of nobody where it does not add.
struct MoeProduct {
  const int64_t* begin = nullptr;
  int64_t n = 0, M = 0, N = 0, K = 0;
  const void *a = nullptr, *b = nullptr;
  bool bf16 = false;  // a and b
  int64_t a_row = 0;
  int64_t b_expert = 0, b_row = 0, b_col = 0;  // elements between experts, rows, columns
  MoeRows c;
};
void moe_product(const MoeProduct& p, void* stream);

// c_e (N, K) (+)= Σ over the rows of expert e of a[row]ᵀ b[row]; a (M, N), b (M, K), c dense.
struct MoeWeightGradient {
  const int64_t* begin = nullptr;
  int64_t n = 0, N = 0, K = 0;
  const void *a = nullptr, *b = nullptr;
  bool bf16 = false;
  int64_t a_row = 0, b_row = 0;
  MoeRows c;
};
void moe_weight_gradient(const MoeWeightGradient& p, void* stream);

}  // namespace krait::cuda
