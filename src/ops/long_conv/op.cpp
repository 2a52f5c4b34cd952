#include <algorithm>

#include "krait/autograd/segment.h"
#include "krait/base/threads.h"
#include "krait/ops/fft.h"
#include "krait/ops/long_conv/cuda.h"
#include "krait/ops/long_conv/long_conv.h"

namespace krait::ops {
namespace {

constexpr int64_t kBlock = 8;  // channels taken together, as their values stand side by side
constexpr int64_t kJobs = 8;

struct Call {
  Tensor u, K, D;
  bool packed = false;
  Packing packing;
  int64_t B = 0, L = 0, H = 0, directions = 0;
  int64_t taps[2] = {0, 0};  // samples of each kernel that are used
  int64_t n = 0;             // size of the transforms

  int64_t sequences() const { return packed ? packing.n : B; }
  int64_t begin(int64_t s) const { return packed ? packing.begin.as<int64_t>()[s] : s * L; }
  int64_t blocks() const { return (H + kBlock - 1) / kBlock; }
};

Call check(Context& c, const Tensor& u, const Tensor& K, const Tensor& D, const Packing* packing) {
  require(u.rank() == 3 && u.row_strided() && (u.dtype == DType::f32 || u.dtype == DType::bf16),
          "[long_conv] u: expected float32 or bfloat16 (B, L, H) with rows at one distance, got {} "
          "{}",
          name_of(u.dtype), u.shape);
  Call q{u, K, D, packing != nullptr};
  if (packing) q.packing = *packing;
  q.B = u.size(0);
  q.L = u.size(1);
  q.H = u.size(2);
  require(K.dtype == DType::f32 && K.contiguous() && K.rank() == 3 && K.size(1) == q.H &&
              (K.size(0) == 1 || K.size(0) == 2),
          "[long_conv] K: expected contiguous float32 (1 or 2, H={}, length), got {} {}", q.H,
          name_of(K.dtype), K.shape);
  require(D.dtype == DType::f32 && D.contiguous() && D.rank() >= 1 && D.numel() == q.H &&
              D.size(-1) == q.H,
          "[long_conv] D: expected contiguous float32 (1, {}), got {} {}", q.H, name_of(D.dtype),
          D.shape);
  q.directions = K.size(0);
  const int64_t longest = packing ? packing->longest : q.L;
  q.taps[0] = std::min(K.size(2), longest);
  q.taps[1] = q.directions == 2 ? std::min(K.size(2), longest - 1) : 0;
  q.n = good_fft_size(std::max<int64_t>(2 * longest - 1, 1));
  if (packing && !c.planning() && c.device.type == Device::cpu) {
    const int64_t* begin = packing->begin.as<int64_t>();
    require(begin[0] == 0 && begin[packing->n] == q.B * q.L,
            "[long_conv] packing: expected to cover tokens 0 to {}, covers {} to {}", q.B * q.L,
            begin[0], begin[packing->n]);
    for (int64_t s = 0; s < packing->n; ++s)
      require(begin[s] <= begin[s + 1] && begin[s + 1] - begin[s] <= longest,
              "[long_conv] packing: sequence {} is tokens {} to {}, the longest is said to be {}",
              s, begin[s], begin[s + 1], longest);
  }
  return q;
}

// `columns` times n complex numbers for each job.
Tensor take_work(Context& c, const Call& q, int64_t columns) {
  return c.scratch({std::min(kJobs, q.blocks()), columns * q.n * 2}, DType::f64);
}

// fn(block of channels, memory), the blocks of a job one after the other.
template <class F>
void for_blocks(const Call& q, const Tensor& work, const F& fn) {
  const int64_t jobs = work.size(0), blocks = q.blocks();
  parallel_for(jobs, [&](int64_t j) {
    auto* const own = reinterpret_cast<Complex*>(work.as<double>() + j * work.size(1));
    for (int64_t i = j * blocks / jobs; i < (j + 1) * blocks / jobs; ++i)
      fn(i * kBlock, std::min(q.H, (i + 1) * kBlock), own);
  });
}

double value(const void* data, DType type, int64_t i) {
  return type == DType::bf16 ? static_cast<float>(static_cast<const bf16*>(data)[i])
                             : static_cast<const float*>(data)[i];
}

// Channels [h0, h1) of sequences s and s + 1, as the real and imaginary parts of columns of n, zeros
// behind.
void gather(const Call& q, const Tensor& t, int64_t stride, int64_t s, int64_t h0, int64_t h1,
            Complex* columns) {
  const int64_t begin = q.begin(s), length = q.begin(s + 1) - begin;
  const bool pair = s + 1 < q.sequences();
  const int64_t begin2 = pair ? q.begin(s + 1) : 0, length2 = pair ? q.begin(s + 2) - begin2 : 0;
  for (int64_t i = 0; i < q.n; ++i)
    for (int64_t h = h0; h < h1; ++h)
      columns[(h - h0) * q.n + i] = {
          i < length ? value(t.data, t.dtype, (begin + i) * stride + h) : 0.0,
          i < length2 ? value(t.data, t.dtype, (begin2 + i) * stride + h) : 0.0};
}

// to[b, t, h] (+)= columns / n + D x: one part of the columns for each of the two sequences.
void scatter(const Call& q, const Tensor& to, int64_t to_stride, bool add, const Tensor& x,
             int64_t x_stride, int64_t s, int64_t h0, int64_t h1, const Complex* columns) {
  const double scale = 1.0 / static_cast<double>(q.n);
  for (int64_t part = 0; part < 2 && s + part < q.sequences(); ++part) {
    const int64_t begin = q.begin(s + part), length = q.begin(s + part + 1) - begin;
    for (int64_t i = 0; i < length; ++i)
      for (int64_t h = h0; h < h1; ++h) {
        const Complex column = columns[(h - h0) * q.n + i];
        const double D = q.D.as<float>()[h];
        double v = scale * (part == 0 ? column.real() : column.imag()) +
                   D * value(x.data, x.dtype, (begin + i) * x_stride + h);
        const int64_t at = (begin + i) * to_stride + h;
        if (add) v += value(to.data, to.dtype, at);
        if (to.dtype == DType::bf16) {
          static_cast<bf16*>(to.data)[at] = bf16(static_cast<float>(v));
        } else {
          static_cast<float*>(to.data)[at] = static_cast<float>(v);
        }
      }
  }
}

// The spectrum of channel h's kernel, both directions, the backward one at the end of the circle.
void kernel_spectrum(const Call& q, int64_t h, Complex* time, Complex* spectrum) {
  std::fill_n(time, q.n, Complex(0));
  const int64_t Lk = q.K.size(2);
  const float* K = q.K.as<float>() + h * Lk;
  for (int64_t l = 0; l < q.taps[0]; ++l) time[l] = K[l];
  for (int64_t l = 0; l < q.taps[1]; ++l) time[q.n - 1 - l] = K[q.H * Lk + l];
  fft(q.n, time, spectrum);
}

// spectrum = spectrum · K or, for the adjoint, · conj(K)
void multiply_spectra(int64_t n, bool conjugate, const Complex* K, Complex* spectrum) {
  const double sign = conjugate ? -1 : 1;
  for (int64_t k = 0; k < n; ++k) {
    const double ar = spectrum[k].real(), ai = spectrum[k].imag();
    const double br = K[k].real(), bi = sign * K[k].imag();
    spectrum[k] = {ar * br - ai * bi, ar * bi + ai * br};
  }
}

// to += conj(a) · b
void add_correlation(int64_t n, const Complex* a, const Complex* b, Complex* to) {
  for (int64_t k = 0; k < n; ++k) {
    const double ar = a[k].real(), ai = -a[k].imag(), br = b[k].real(), bi = b[k].imag();
    to[k] += Complex(ar * br - ai * bi, ar * bi + ai * br);
  }
}

double flops(const Call& q, int transforms) {
  double log2 = 0;
  for (int64_t i = 1; i < q.n; i *= 2) ++log2;
  return static_cast<double>(q.H * transforms * q.n) * 5 * log2;
}

void run_forward(const Call& q, const Tensor& work, const Tensor& y) {
  for_blocks(q, work, [&](int64_t h0, int64_t h1, Complex* columns) {
    Complex* const spectrum = columns + kBlock * q.n;
    Complex* const kernels = spectrum + q.n;
    for (int64_t h = h0; h < h1; ++h) kernel_spectrum(q, h, spectrum, kernels + (h - h0) * q.n);
    for (int64_t s = 0; s < q.sequences(); s += 2) {
      gather(q, q.u, q.u.row_stride(), s, h0, h1, columns);
      for (int64_t i = 0; i < h1 - h0; ++i) {
        fft(q.n, columns + i * q.n, spectrum);
        multiply_spectra(q.n, false, kernels + i * q.n, spectrum);
        fft_back(q.n, spectrum, columns + i * q.n);
      }
      scatter(q, y, q.H, false, q.u, q.u.row_stride(), s, h0, h1, columns);
    }
  });
}

cuda::ConvRows gpu_rows(const Tensor& t, bool add = false) {
  if (!t) return {};
  return {t.data, t.row_stride(), t.dtype == DType::bf16, add};
}

cuda::LongConvCall gpu_call(const Call& q, const Tensor& y) {
  cuda::LongConvCall c;
  c.H = q.H;
  c.L = q.L;
  c.longest = q.packed ? q.packing.longest : q.L;
  c.sequences = q.sequences();
  if (q.packed) c.begin = q.packing.begin.as<int64_t>();
  c.u = gpu_rows(q.u);
  c.y = gpu_rows(y);
  c.K = q.K.as<float>();
  c.D = q.D.as<float>();
  c.Lk = q.K.size(2);
  c.directions = q.directions;
  std::copy_n(q.taps, 2, c.taps);
  return c;
}

// Scratch of a call on a GPU, where it needs any.
void take_gpu_work(Context& c, cuda::LongConvCall& call, bool backward) {
  int64_t doubles = 0;
  KRAIT_WITH_CUDA(doubles = cuda::long_conv_scratch(call, backward));
  if (doubles > 0) call.scratch = c.scratch({doubles}, DType::f64).as<double>();
}

void forward_on_gpu(Context& c, const Call& q, const Tensor& y) {
  cuda::LongConvCall call = gpu_call(q, y);
  Scratch scratch(c);
  take_gpu_work(c, call, false);
  if (!c.planning()) KRAIT_WITH_CUDA(cuda::long_conv(call, c.stream));
}

void backward_on_gpu(Context& c, const Call& q, const Tensor& dy, const GradTarget& du,
                     const GradTarget& dK, const GradTarget& dD) {
  cuda::LongConvBackward b;
  b.c = gpu_call(q, {});
  Scratch scratch(c);
  take_gpu_work(c, b.c, true);
  if (c.planning()) return;
  b.dy = gpu_rows(dy);
  b.du = gpu_rows(du.grad, du.add);
  b.dK = dK.grad ? dK.grad.as<float>() : nullptr;
  b.dD = dD.grad ? dD.grad.as<float>() : nullptr;
  b.add_K = dK.add;
  b.add_D = dD.add;
  KRAIT_WITH_CUDA(cuda::long_conv_backward(b, c.stream));
}

void backward(Context& b, const Call& q, const Tensor& y) {
  const Tensor dy = b.tape->grad(y);
  if (!dy) return;
  const GradTarget du = b.tape->grad_into(b, q.u);
  const GradTarget dK = b.tape->grad_into(b, q.K);
  const GradTarget dD = b.tape->grad_into(b, q.D);
  b.cost("long_conv.backward", 3.0 * static_cast<double>(q.u.bytes()),
         flops(q, static_cast<int>(3 * ((q.sequences() + 1) / 2) + 2)));
  if (b.device.type == Device::cuda) return backward_on_gpu(b, q, dy, du, dK, dD);
  Scratch scratch(b);
  // dy's columns and spectra, u's columns, the kernels' spectra, and their gradients
  const Tensor work = take_work(b, q, 4 * kBlock + 2);
  if (b.planning()) return;
  const int64_t n = q.n, Lk = q.K.size(2);
  for_blocks(q, work, [&](int64_t h0, int64_t h1, Complex* dy_columns) {
    Complex* const u_columns = dy_columns + kBlock * n;
    Complex* const kernels = u_columns + kBlock * n;
    Complex* const d_kernels = kernels + kBlock * n;
    Complex* const g = d_kernels + kBlock * n;
    Complex* const v = g + n;
    double sums[kBlock] = {};  // dD
    for (int64_t h = h0; h < h1; ++h) kernel_spectrum(q, h, v, kernels + (h - h0) * n);
    std::fill_n(d_kernels, (h1 - h0) * n, Complex(0));
    for (int64_t s = 0; s < q.sequences(); s += 2) {
      gather(q, dy, q.H, s, h0, h1, dy_columns);
      gather(q, q.u, q.u.row_stride(), s, h0, h1, u_columns);
      for (int64_t i = 0; i < h1 - h0; ++i) {
        for (int64_t t = 0; t < n; ++t)
          sums[i] += dy_columns[i * n + t].real() * u_columns[i * n + t].real() +
                     dy_columns[i * n + t].imag() * u_columns[i * n + t].imag();
        fft(n, dy_columns + i * n, g);
        if (dK.grad) {
          fft(n, u_columns + i * n, v);
          add_correlation(n, v, g, d_kernels + i * n);
        }
        multiply_spectra(n, true, kernels + i * n, g);
        fft_back(n, g, dy_columns + i * n);
      }
      if (du.grad)
        scatter(q, du.grad, du.grad.row_stride(), du.add, dy, q.H, s, h0, h1, dy_columns);
    }
    for (int64_t h = h0; h < h1; ++h) {
      if (dD.grad) {
        float& to = dD.grad.as<float>()[h];
        to = static_cast<float>((dD.add ? to : 0.0) + sums[h - h0]);
      }
      if (!dK.grad) continue;
      fft_back(n, d_kernels + (h - h0) * n, v);
      for (int64_t direction = 0; direction < q.directions; ++direction) {
        float* const to = dK.grad.as<float>() + (direction * q.H + h) * Lk;
        for (int64_t l = 0; l < Lk; ++l) {
          const double sum = l >= q.taps[direction] ? 0.0
                                                    : v[direction == 0 ? l : n - 1 - l].real() /
                                                          static_cast<double>(n);
          to[l] = static_cast<float>((dK.add ? to[l] : 0.0) + sum);
        }
      }
    }
  });
}

}  // namespace

Tensor long_conv(Context& c, const Tensor& u, const Tensor& K, const Tensor& D,
                 const Packing* packing) {
  const Kept kept(c);
  const Call q = check(c, u, K, D, packing);
  Tensor y = c.alloc(u.shape, u.dtype);
  c.cost("long_conv", 2.0 * static_cast<double>(u.bytes()),
         flops(q, static_cast<int>(2 * ((q.sequences() + 1) / 2) + 1)));
  if (c.device.type == Device::cuda) {
    forward_on_gpu(c, q, y);
  } else {
    Scratch scratch(c);
    const Tensor work = take_work(c, q, 2 * kBlock + 1);
    if (!c.planning()) run_forward(q, work, y);
  }
  if (c.tape && needs_grad({u, K, D})) {
    c.tape->watch(y);
    c.tape->record([=](Context& b) { backward(b, q, y); });
  }
  return y;
}

}  // namespace krait::ops
