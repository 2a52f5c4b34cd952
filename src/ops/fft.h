// Discrete Fourier transforms in double, by kissfft. Tables are kept per thread, so all is safe to call
// from several threads. Sizes whose prime factors are 2, 3 and 5 take O(n log n).
#pragma once
#include <complex>
#include <cstdint>

namespace krait::ops {

using Complex = std::complex<double>;

// out[k] = Σ_t in[t] exp(-2πi k t / n); in and out must not overlap.
void fft(int64_t n, const Complex* in, Complex* out);
// out[t] = Σ_k in[k] exp(+2πi k t / n): n times the inverse.
void fft_back(int64_t n, const Complex* in, Complex* out);

// The smallest size of at least `n` with the prime factors 2, 3, 5 alone.
int64_t good_fft_size(int64_t n);

}  // namespace krait::ops
