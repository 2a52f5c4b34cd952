// Private to ssd: what its kernels on warpgroups (tensor/cuda/warpgroup.cuh) share.
#pragma once
#include "krait/ops/ssd/cuda_matrix.cuh"
#include "krait/tensor/cuda/launch_dependent.cuh"
#include "krait/tensor/cuda/one_pass.h"
#include "krait/tensor/cuda/warpgroup.cuh"

namespace krait::ops::ssd_gpu {
namespace {

using cuda::in_tile;
using cuda::kTileBytes;

// What a thread of kThreads brings of 64 rows of a tensor of bfloat16 to tiles of 64 columns each, from one place after
// another.
template <int kColumns, int kThreads>
class TileReader {
  static constexpr int kUnits = kColumns / 8, kStep = kThreads / kUnits;
  static_assert(kStep % 8 == 0 && kQ % kStep == 0);

 public:
  __device__ TileReader(const CudaRows& r, int64_t row, int column, int thread)
      : first_(thread / kUnits),
        unit_(thread % kUnits),
        stride_(static_cast<int>(r.stride)),
        from_(static_cast<const bf16*>(r.data) + (row + first_) * stride_ + column + 8 * unit_) {}
  __device__ void go(int rows) { from_ += int64_t{rows} * stride_; }
  // `valid` rows and `columns` columns, a multiple of 8, and zeros beyond.
  __device__ void bring(unsigned char* to, int valid, int columns) const {
    const int left = 8 * unit_ < columns ? valid - first_ : 0;
    const bf16* from = from_;
    to += unit_ / 8 * kTileBytes + in_tile(first_, unit_ % 8);
#pragma unroll
    for (int t = 0; t < kQ; t += kStep, from += kStep * stride_)
      cuda::copy_async(to + t * 128, from, t < left);
  }

 private:
  int first_, unit_, stride_;
  const bf16* from_;
};

// Whether the device has warpgroups, and a problem few enough states for the registers of one, and rows of which 16 bytes
// can be moved at once. Walks and gradients of a call agree, as they share states.
inline bool warpgroups_fit(const CudaProblem& p) {
  return p.N <= 128 && p.x.runs && p.B.runs && p.C.runs && cuda::on_hopper();
}
// Whether the states are whole tiles, as which a walk leaves them to the gradients.
inline bool states_are_tiles(const CudaProblem& p) { return p.P % kP == 0 && p.N % 64 == 0; }

}  // namespace
}  // namespace krait::ops::ssd_gpu
