// Private to this room: what a recorded call keeps, and its backward.
#pragma once
#include <algorithm>

#include "krait/ops/s4_scan/cuda.h"
#include "krait/ops/s4_scan/s4_scan.h"

namespace krait::ops {

// The state of one head, in planes of double with zeros behind, and back.
inline void s4_load_state(const float* from, int64_t N, int64_t row, double* h) {
  std::fill_n(h, 2 * row, 0.0);
  for (int64_t n = 0; n < N && from; ++n) {
    h[n] = from[2 * n];
    h[row + n] = from[2 * n + 1];
  }
}

inline void s4_store_state(const double* h, int64_t N, int64_t row, float* to) {
  for (int64_t n = 0; n < N; ++n) {
    to[2 * n] = static_cast<float>(h[n]);
    to[2 * n + 1] = static_cast<float>(h[row + n]);
  }
}

// Everything but y.
cuda::S4ScanCall s4_scan_call(const Tensor& u, const S4Steps& steps, const Tensor& D,
                              const Packing* packing, const Tensor& state_in,
                              const Tensor& state_out);

struct S4ScanBackward {
  S4Learned learned;
  Tensor u, D;
  bool packed;
  Packing packing;
  Tensor state_in;
  S4ScanResult result;

  S4ScanBackward(const S4Learned& l, const Tensor& in, const Tensor& skip, const Packing* p,
                 const Tensor& state, const S4ScanResult& r)
      : learned(l),
        u(in),
        D(skip),
        packed(p != nullptr),
        packing(p ? *p : Packing()),
        state_in(state),
        result(r) {}
};

void s4_scan_backward(Context& c, const S4ScanBackward& q);

}  // namespace krait::ops
