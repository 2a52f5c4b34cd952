// A block a channel: the spectrum of its kernel, then two sequences after two as one complex transform. In shared
// memory where all of it fits, else in scratch memory.
#include "krait/ops/long_conv/cuda.h"

#include <algorithm>

#include "krait/ops/fft.cuh"
#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 264, kSharedBytes = 200 << 10;

int64_t size_of_transforms(const LongConvCall& c) {
  return power_of_two(std::max<int64_t>(2 * c.longest - 1, 1));
}

// Complex numbers that a block works on: roots, two columns, spectra.
int64_t numbers(int64_t n, bool backward) { return n / 2 + (backward ? 6 : 3) * n; }
int64_t bytes(int64_t n, bool backward) {
  return numbers(n, backward) * static_cast<int64_t>(sizeof(Complex));
}

__device__ double value(const ConvRows& r, int64_t t, int64_t h) {
  const int64_t at = t * r.stride + h;
  return r.bf16 ? static_cast<float>(static_cast<const __nv_bfloat16*>(r.data)[at])
                : static_cast<const float*>(r.data)[at];
}

__device__ int64_t begin_of(const LongConvCall& c, int64_t s) {
  return c.begin ? c.begin[s] : s * c.L;
}

struct Block {
  const LongConvCall& c;
  int64_t n, h;
  Complex *roots, *data, *other, *kernel;

  // Channel h of sequences s and s + 1, as real and imaginary parts, zeros behind.
  __device__ void gather(const ConvRows& rows, int64_t s) const {
    const int64_t begin = begin_of(c, s), end = begin_of(c, s + 1);
    const int64_t end2 = s + 1 < c.sequences ? begin_of(c, s + 2) : end;
    for (int64_t i = threadIdx.x; i < n; i += kThreads)
      data[i] = {begin + i < end ? value(rows, begin + i, h) : 0.0,
                 end + i < end2 ? value(rows, end + i, h) : 0.0};
    __syncthreads();
  }

  // to[t, h] (+)= data / n + D x: one part of it for each of the two sequences.
  __device__ void scatter(const ConvRows& to, const ConvRows& x, int64_t s) const {
    const double scale = 1.0 / static_cast<double>(n), D = c.D[h];
    for (int64_t part = 0; part < 2 && s + part < c.sequences; ++part) {
      const int64_t begin = begin_of(c, s + part), length = begin_of(c, s + part + 1) - begin;
      for (int64_t i = threadIdx.x; i < length; i += kThreads) {
        const int64_t at = (begin + i) * to.stride + h;
        double v = scale * (part == 0 ? data[i].re : data[i].im) + D * value(x, begin + i, h);
        if (to.add) v += value(to, begin + i, h);
        if (to.bf16) {
          static_cast<__nv_bfloat16*>(to.data)[at] =
              static_cast<__nv_bfloat16>(static_cast<float>(v));
        } else {
          static_cast<float*>(to.data)[at] = static_cast<float>(v);
        }
      }
    }
    __syncthreads();
  }

  // The spectrum of the channel's kernel, the backward direction at the end of the circle.
  __device__ void fill_kernel() {
    const float* const K = c.K + h * c.Lk;
    for (int64_t i = threadIdx.x; i < n; i += kThreads) {
      const int64_t back = n - 1 - i;
      data[i] = {i < c.taps[0] ? K[i] : back < c.taps[1] ? K[c.H * c.Lk + back] : 0.0, 0.0};
    }
    __syncthreads();
    fft(data, other, roots, n, false);
    for (int64_t i = threadIdx.x; i < n; i += kThreads) kernel[i] = data[i];
    __syncthreads();
  }

  // data = data · kernel, or its adjoint
  __device__ void multiply(bool adjoint) const {
    for (int64_t i = threadIdx.x; i < n; i += kThreads)
      data[i] = data[i] * (adjoint ? conj(kernel[i]) : kernel[i]);
    __syncthreads();
  }
};

__device__ Block block_at(const LongConvCall& c, int64_t n, Complex* at) {
  return {c, n, 0, at, at + n / 2, at + n / 2 + n, at + n / 2 + 2 * n};
}

__device__ Complex* memory(const LongConvCall& c, Complex* shared, int64_t numbers) {
  return c.scratch ? reinterpret_cast<Complex*>(c.scratch) + blockIdx.x * numbers : shared;
}

__global__ void __launch_bounds__(kThreads)
    forward_kernel(const LongConvCall c, int64_t n, int64_t numbers) {
  extern __shared__ Complex shared[];
  Block b = block_at(c, n, memory(c, shared, numbers));
  fill_roots(b.roots, n);
  for (b.h = blockIdx.x; b.h < c.H; b.h += gridDim.x) {
    b.fill_kernel();
    for (int64_t s = 0; s < c.sequences; s += 2) {
      b.gather(c.u, s);
      fft(b.data, b.other, b.roots, n, false);
      b.multiply(false);
      fft(b.data, b.other, b.roots, n, true);
      b.scatter(c.y, c.u, s);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    backward_kernel(const LongConvBackward g, int64_t n, int64_t numbers) {
  extern __shared__ Complex shared[];
  const LongConvCall& c = g.c;
  Block b = block_at(c, n, memory(c, shared, numbers));
  Complex *const d_kernel = b.kernel + n, *const dy = d_kernel + n, *const dy_time = dy + n;
  fill_roots(b.roots, n);
  for (b.h = blockIdx.x; b.h < c.H; b.h += gridDim.x) {
    b.fill_kernel();
    double sum = 0;  // dD
    for (int64_t i = threadIdx.x; i < n; i += kThreads) d_kernel[i] = {0, 0};
    for (int64_t s = 0; s < c.sequences; s += 2) {
      b.gather(g.dy, s);
      for (int64_t i = threadIdx.x; i < n; i += kThreads) dy_time[i] = b.data[i];
      __syncthreads();
      fft(b.data, b.other, b.roots, n, false);
      for (int64_t i = threadIdx.x; i < n; i += kThreads) dy[i] = b.data[i];
      if (g.du.data) {
        b.multiply(true);
        fft(b.data, b.other, b.roots, n, true);
        b.scatter(g.du, g.dy, s);
      }
      __syncthreads();
      b.gather(c.u, s);
      for (int64_t i = threadIdx.x; i < n; i += kThreads)
        sum += dy_time[i].re * b.data[i].re + dy_time[i].im * b.data[i].im;
      if (!g.dK) continue;
      __syncthreads();
      fft(b.data, b.other, b.roots, n, false);
      for (int64_t i = threadIdx.x; i < n; i += kThreads) d_kernel[i] += conj(b.data[i]) * dy[i];
      __syncthreads();
    }
    sum = block_sum(sum);
    if (g.dD && threadIdx.x == 0) g.dD[b.h] = static_cast<float>((g.add_D ? g.dD[b.h] : 0.0) + sum);
    if (!g.dK) continue;
    for (int64_t i = threadIdx.x; i < n; i += kThreads) b.data[i] = d_kernel[i];
    __syncthreads();
    fft(b.data, b.other, b.roots, n, true);
    for (int64_t direction = 0; direction < c.directions; ++direction) {
      float* const to = g.dK + (direction * c.H + b.h) * c.Lk;
      for (int64_t l = threadIdx.x; l < c.Lk; l += kThreads) {
        const double v = l >= c.taps[direction]
                             ? 0.0
                             : b.data[direction == 0 ? l : n - 1 - l].re / static_cast<double>(n);
        to[l] = static_cast<float>((g.add_K ? to[l] : 0.0) + v);
      }
    }
    __syncthreads();
  }
}

template <class Kernel, class Call>
void launch(Kernel kernel, const LongConvCall& c, const Call& call, bool backward, void* stream) {
  const int64_t n = size_of_transforms(c);
  const auto shared = static_cast<size_t>(c.scratch ? 0 : bytes(n, backward));
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(shared));
  kernel<<<static_cast<unsigned>(std::min(c.H, kMostBlocks)), kThreads, shared,
           static_cast<cudaStream_t>(stream)>>>(call, n, numbers(n, backward));
  check_launch("long_conv");
}

}  // namespace

int64_t long_conv_scratch(const LongConvCall& c, bool backward) {
  const int64_t n = size_of_transforms(c);
  return bytes(n, backward) <= kSharedBytes ? 0
                                            : std::min(c.H, kMostBlocks) * 2 * numbers(n, backward);
}

void long_conv(const LongConvCall& c, void* stream) {
  if (c.H > 0) launch(forward_kernel, c, c, false, stream);
}

void long_conv_backward(const LongConvBackward& b, void* stream) {
  if (b.c.H > 0) launch(backward_kernel, b.c, b, true, stream);
}

}  // namespace krait::cuda
