// Private to this room: conv1d_causal's backward joined with that of a product of its result, on a GPU.
#pragma once
#include <cstdint>

namespace krait::cuda {

// Of y = silu(conv(x)) (T, E) in sequences of `length` tokens and p = y Wᵀ (T, J), bfloat16 all.
struct ConvProjected {
  int64_t tokens = 0, length = 0, E = 0, J = 0;
  const void* x = nullptr;  // rows x_stride elements apart
  int64_t x_stride = 0;
  const float* k = nullptr;     // (E, 4)
  const float* bias = nullptr;  // (E) or null
  const void* w = nullptr;      // (J, E)
  const void *dy = nullptr, *dp = nullptr;
  void* dx = nullptr;
  int64_t dx_stride = 0;
  bool dx_add = false;
  float* sums = nullptr;  // (pieces, 5 + J, E) scratch
  // What may be null is not wanted.
  float *dk = nullptr, *dbias = nullptr, *dw = nullptr;  // as k, bias, w
  bool dk_add = false, dbias_add = false, dw_add = false;
};

constexpr int64_t kProjectedChannels = 128, kProjectedColumns = 192;  // of a block; the most J

// Blocks along the tokens: one block a multiprocessor of an H200, or nearly.
constexpr int64_t conv_projected_pieces(int64_t tokens, int64_t E) {
  const int64_t fit = 132 / (E / kProjectedChannels), useful = tokens / 256;
  const int64_t pieces = fit < useful ? fit : useful;
  return pieces < 1 ? 1 : pieces;
}

// Whether it can be done here.
bool fits_conv_projected(const ConvProjected& p);
void conv_projected_backward(const ConvProjected& p, void* stream);

}  // namespace krait::cuda
