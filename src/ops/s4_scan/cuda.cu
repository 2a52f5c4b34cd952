// A warp a head of a sequence: a lane has every 32nd state in registers for all tokens. In float64.
#include "krait/ops/s4_scan/cuda.h"

#include "krait/ops/s4_scan/cuda_head.cuh"

namespace krait::cuda {

namespace {

constexpr int kWarps = 4;

template <class T, int kEach, bool kDplr>
__global__ void __launch_bounds__(32 * kWarps) scan_kernel(const S4ScanCall c) {
  const int64_t h = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (h >= c.H) return;
  const S4Range range = s4_range(c, blockIdx.y);
  const S4Head<kEach, kDplr> head(c, h, lane);
  Complex x[kEach];  // the state
  head.load(c.state_in, range.in, x);
  const double D = c.D[h];
  for (int64_t t = range.begin; t < range.end; ++t) {
    const double u = static_cast<float>(static_cast<const T*>(c.u)[t * c.u_stride + h]);
    const double y = 2 * warp_sum(head.step(x, u)) + D * u;
    if (lane == 0) static_cast<T*>(c.y)[t * c.H + h] = static_cast<T>(static_cast<float>(y));
  }
  if (!c.state_out || range.out < 0) return;
  head.each([&](int i, int64_t n) {
    float* const to = c.state_out + ((range.out * c.H + h) * c.N + n) * 2;
    to[0] = static_cast<float>(x[i].re);
    to[1] = static_cast<float>(x[i].im);
  });
}

template <class T, int kEach>
void launch(const S4ScanCall& c, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(c.H, kWarps)), static_cast<unsigned>(c.sequences));
  if (c.dplr) {
    scan_kernel<T, kEach, true><<<grid, 32 * kWarps, 0, stream>>>(c);
  } else {
    scan_kernel<T, kEach, false><<<grid, 32 * kWarps, 0, stream>>>(c);
  }
}

template <class T>
void launch_for(const S4ScanCall& c, cudaStream_t stream) {
  if (c.N <= 32) {
    launch<T, 1>(c, stream);
  } else if (c.N <= 64) {
    launch<T, 2>(c, stream);
  } else {
    launch<T, 4>(c, stream);
  }
}

}  // namespace

void s4_scan(const S4ScanCall& c, void* stream) {
  if (c.H == 0 || c.sequences == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  c.bf16 ? launch_for<__nv_bfloat16>(c, s) : launch_for<float>(c, s);
  check_launch("s4_scan");
}

}  // namespace krait::cuda
