// Discrete Fourier transforms of a block of threads, in double; sizes are powers of two. Private to ops' .cu files.
#pragma once
#include <cuda_runtime_api.h>
#include <vector_types.h>

#include <cstdint>

namespace krait::cuda {

constexpr int64_t power_of_two(int64_t n) {  // the smallest of at least n
  int64_t p = 1;
  while (p < n) p *= 2;
  return p;
}

struct Complex {
  double re, im;
};
__device__ inline Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
__device__ inline Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
__device__ inline Complex operator-(Complex a) { return {-a.re, -a.im}; }
__device__ inline Complex operator*(double s, Complex a) { return {s * a.re, s * a.im}; }
__device__ inline Complex operator*(Complex a, Complex b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
__device__ inline Complex& operator+=(Complex& a, Complex b) { return a = a + b; }
__device__ inline Complex conj(Complex a) { return {a.re, -a.im}; }
__device__ inline double norm(Complex a) { return a.re * a.re + a.im * a.im; }
__device__ inline Complex operator/(Complex a, Complex b) {
  return (1.0 / norm(b)) * (a * conj(b));
}

// exp(-2πi m / n)
__device__ inline Complex root_of_unity(int64_t m, int64_t n) {
  Complex w;
  sincospi(-2.0 * static_cast<double>(m) / static_cast<double>(n), &w.im, &w.re);
  return w;
}

// roots (n / 2). The caller puts a barrier behind it.
__device__ inline void fill_roots(Complex* roots, int64_t n) {
  for (int64_t m = threadIdx.x; m < n / 2; m += blockDim.x) roots[m] = root_of_unity(m, n);
}

// data[k] = Σ_t data[t] exp(-2πi k t / n), with + for `back`: n times the inverse. `data` and `other`, n each,
// change places with every step (Stockham); the result is in `data` as it is on return. All threads have
// written what they have of the input before a barrier, and can read the result at once.
__device__ inline void fft(Complex*& data, Complex*& other, const Complex* roots, int64_t n,
                           bool back) {
  for (int64_t step = 1; step < n; step *= 2) {
    for (int64_t i = threadIdx.x; i < n / 2; i += blockDim.x) {
      const int64_t k = i & (step - 1), at = i - k;
      const Complex w = back ? conj(roots[at]) : roots[at], a = data[i], b = data[i + n / 2];
      other[2 * at + k] = a + b;
      other[2 * at + k + step] = (a - b) * w;
    }
    __syncthreads();
    Complex* const result = other;
    other = data;
    data = result;
  }
}

}  // namespace krait::cuda
