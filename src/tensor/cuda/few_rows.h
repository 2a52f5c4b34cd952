// y = x Wᵀ for up to 16 rows of x, as a decoded token needs it: bound by reading W once. For GPUs from sm_90 on.
#pragma once
#include <cstdint>

namespace krait::cuda {

// Whether the device has these kernels.
bool has_few_rows(int device);

constexpr int64_t kWideRows = 16384;  // of W: a head
constexpr int64_t kMostFewRows = 16;  // more are for one_pass.h

// Whether W (N, K) at `w` and rows of x, `x_step` elements apart, can be read 16 bytes at a time.
inline bool in_few_rows_form(const void* w, const void* x, int64_t x_step, int64_t K) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return K % 8 == 0 && x_step % 8 == 0 && aligned(w) && aligned(x);
}

// x (M, K) and w (N, K, dense) are both bfloat16 or both float32.
struct FewRows {
  const void* w = nullptr;
  const void* x = nullptr;
  int64_t x_step = 0;  // elements between rows
  bool bf16 = false;
  int64_t M = 0, N = 0, K = 0;
  // The next kernel starts only when those before this one are complete: it does not crowd them out.
  bool holds_next = false;
};

struct StoreRows {
  void* y = nullptr;  // (M, N), dense
  bool bf16 = false;
  const float* bias = nullptr;  // (N)
  const float* plus = nullptr;  // (M, N), dense; may be y
};

// y = x Wᵀ + bias + plus, summed in float32 in an order that follows from the shapes alone. Starts while the
// kernel before it in the stream still runs: that one must not write w or bias.
void few_rows(const FewRows& p, const StoreRows& end, void* stream);

// The same for a wide W on compute capability 9.0, where the kernel has room for K; then it is done. (H200, a head of
// 50,280 x 2048: 49 us instead of 53 with one row, 51 instead of 53 by one_pass with 16.)
bool few_of_wide(const FewRows& p, const StoreRows& end, void* stream);

}  // namespace krait::cuda
