// A block a token: its angles first, in float64, then all of its heads.
#include "krait/ops/rotary/cuda.h"

#include <algorithm>

#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

namespace {

// Where token t stands in its sequence, with what that has read before.
__device__ int64_t position_of(const RotaryCall& c, int64_t t) {
  int64_t s = 0, first = 0, row = 0;
  if (c.begin) {
    int64_t high = c.sequences;  // begin[s] <= t, and the answer is below `high`
    while (high - s > 1) {
      const int64_t middle = (s + high) / 2;
      (c.begin[middle] <= t ? s : high) = middle;
    }
    first = c.begin[s];
    row = c.row_in[s];
  } else {
    row = t / c.L;
    first = row * c.L;
  }
  return t - first + (c.start && row >= 0 ? static_cast<int64_t>(c.start[row]) : 0);
}

template <class T>
__global__ void rotary_kernel(const __grid_constant__ RotaryCall c) {
  __shared__ float cosine[kRotaryMaxPairs], sine[kRotaryMaxPairs];
  const int64_t t = blockIdx.x, half = c.R / 2;
  if (threadIdx.x < half) {
    double s, cos_of;
    sincos(static_cast<double>(position_of(c, t)) * c.angle[threadIdx.x], &s, &cos_of);
    cosine[threadIdx.x] = static_cast<float>(cos_of);
    sine[threadIdx.x] = static_cast<float>(c.sign * s);
  }
  __syncthreads();
  const T* const from = static_cast<const T*>(c.from) + t * c.from_row;
  T* const to = static_cast<T*>(c.to) + t * c.to_row;
  const auto put = [&](int64_t at, float v) {
    to[at] = static_cast<T>(c.add ? static_cast<float>(to[at]) + v : v);
  };
  const int64_t of_head = c.P - half;  // pairs, then what is copied
  for (int64_t i = threadIdx.x; i < c.H * of_head; i += blockDim.x) {
    const int64_t head = i / of_head, e = i % of_head;
    const T* const row = from + head * c.from_head;
    if (e >= half) {
      put(head * c.to_head + half + e, static_cast<float>(row[half + e]));
      continue;
    }
    const int64_t a = c.interleaved ? 2 * e : e, b = c.interleaved ? 2 * e + 1 : e + half;
    const float x = static_cast<float>(row[a]), y = static_cast<float>(row[b]);
    put(head * c.to_head + a, x * cosine[e] - y * sine[e]);
    put(head * c.to_head + b, x * sine[e] + y * cosine[e]);
  }
}

}  // namespace

void rotary(const RotaryCall& c, void* stream) {
  if (c.tokens == 0 || c.H == 0 || c.P == 0) return;
  const int64_t wanted = ceil_div(c.H * (c.P - c.R / 2), 32) * 32;
  const auto threads = static_cast<unsigned>(std::clamp<int64_t>(wanted, kRotaryMaxPairs, 512));
  const auto blocks = static_cast<unsigned>(c.tokens);
  const auto s = static_cast<cudaStream_t>(stream);
  if (c.bf16) {
    rotary_kernel<__nv_bfloat16><<<blocks, threads, 0, s>>>(c);
  } else {
    rotary_kernel<float><<<blocks, threads, 0, s>>>(c);
  }
  check_launch("rotary");
}

}  // namespace krait::cuda
