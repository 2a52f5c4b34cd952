#include <optional>

#include "krait/autograd/segment.h"
#include "krait/base/threads.h"
#include "krait/ops/linear/kernels.h"
#include "krait/ops/linear/linear.h"
#include "krait/tensor/cpu/convert.h"
#include "krait/tensor/cuda/one_pass.h"
#include "krait/tensor/cuda/rows.h"
#include "krait/tensor/products.h"

namespace krait::ops {

namespace {

// Up to this many rows our own kernel, which streams the weights once, is no slower than the library's
// product (measured on Zen 4, see bench.cpp).
constexpr int64_t few_rows_for(DType w) { return w == DType::bf16 ? 16 : 32; }

struct Sizes {
  int64_t M, N, K;
};

bool is_float(DType t) { return t == DType::f32 || t == DType::bf16; }

Sizes check(const Tensor& x, const Tensor& w, const Tensor& bias, DType out, const Tensor& stream) {
  require(is_float(x.dtype) && is_float(w.dtype) && is_float(out),
          "[linear] expected float32 or bfloat16, got x {}, w {}, y {}", name_of(x.dtype),
          name_of(w.dtype), name_of(out));
  require(w.rank() == 2 && w.contiguous() && w.size(1) > 0,
          "[linear] w: expected contiguous (N, K > 0), got {}", w.shape);
  const int64_t N = w.size(0), K = w.size(1);
  require(x.rank() >= 1 && x.size(-1) == K && x.row_strided(),
          "[linear] x: expected (..., K={}) with rows at one distance, got {}", K, x.shape);
  require(!bias || (bias.shape == Shape{N} && bias.dtype == DType::f32 && bias.contiguous()),
          "[linear] bias: expected float32 (N={}), got {} {}", N, name_of(bias.dtype), bias.shape);
  if (stream) {
    Shape s = x.shape;
    s[-1] = N;
    require(stream.shape == s && stream.dtype == DType::f32 && stream.contiguous(),
            "[linear_add] stream: expected contiguous float32 {}, got {} {}", s,
            name_of(stream.dtype), stream.shape);
  }
  return {x.numel() / K, N, K};
}

void few_rows(Context& c, const Sizes& z, const Tensor& x, const Tensor& w, const Tensor& bias,
              const Tensor& y, const Tensor& stream) {
  const bool bf16_weights = w.dtype == DType::bf16;
  const LinearKernels& k = KRAIT_PICK_ISA(linear_kernels);
  FewRows a{.w = w.data,
            .K = z.K,
            .M = z.M,
            .y = y.data,
            .y_step = z.N,
            .y_bf16 = y.dtype == DType::bf16};
  Tensor ready;
  if (bf16_weights) {
    const int64_t padded = (z.K + kArrangeUnit - 1) / kArrangeUnit * kArrangeUnit;
    ready = c.scratch({z.M, padded}, DType::f32);
    a.x_step = padded;
  } else {
    ready = cpu::in_type(c, x, DType::f32);
    a.x_step = ready.row_stride();
  }
  if (c.planning()) return;
  if (bf16_weights) {
    for (int64_t m = 0; m < z.M; ++m) {
      const auto* row = static_cast<const std::byte*>(x.data) +
                        m * x.row_stride() * static_cast<int64_t>(size_of(x.dtype));
      k.arrange(row, x.dtype == DType::bf16, z.K, ready.as<float>() + m * a.x_step);
    }
  }
  a.x = ready.as<float>();
  a.bias = bias ? bias.as<float>() : nullptr;
  a.plus = stream ? stream.as<float>() : nullptr;
  a.plus_step = z.N;
  // About 16 KB of weights a piece. A row of w is summed the same way whatever piece it is in.
  const int64_t row_bytes = z.K * static_cast<int64_t>(size_of(w.dtype));
  const int64_t grain = std::clamp<int64_t>((16384 / row_bytes + 11) / 12 * 12, 12, 240);
  parallel_ranges(z.N, grain, [&](int64_t begin, int64_t end) {
    FewRows piece = a;
    piece.begin = begin;
    piece.end = end;
    (bf16_weights ? k.few_rows_bf16 : k.few_rows_f32)(piece);
  });
}

// False where the kernel does not fit: nothing was done.
bool few_rows_on_gpu(Context& c, const Sizes& z, const Tensor& x, const Tensor& w,
                     const Tensor& bias, const Tensor& y, const Tensor& stream) {
  // A head's many rows fill the card however they are cut: one_pass is the faster one from a few rows on. Of many
  // rows the library's product is (H200, 128 rows: of W 6144 x 2048 9.1 us of 15.7, of a head of 50,280 67 of 89; 64
  // rows: 8.8 of 10.8, but 9.0 of 8.5 where W is 2048 x 4096).
  const bool bf16 = w.dtype == DType::bf16,
             many = bf16 && (z.M > cuda::kMostFewRows || (z.M > 4 && z.N >= 16384));
  if (many && z.M > (z.N >= 3072 ? 32 : 64)) return false;
  bool here = false;
  KRAIT_WITH_CUDA(here = many ? cuda::has_one_pass(c.device.index)
                              : cuda::has_few_rows(c.device.index));
  if (!here || (!bf16 && z.M > cuda::kMostFewRows) ||
      !cuda::in_few_rows_form(w.data, x.data, x.row_stride(), z.K))
    return false;
  const Tensor ready = in_type(c, x, w.dtype);
  if (c.planning()) return true;
  const cuda::FewRows p{.w = w.data,
                        .x = ready.data,
                        .x_step = ready.row_stride(),
                        .bf16 = bf16,
                        .M = z.M,
                        .N = z.N,
                        .K = z.K};
  const cuda::StoreRows end{.y = y.data,
                            .bf16 = y.dtype == DType::bf16,
                            .bias = bias ? bias.as<float>() : nullptr,
                            .plus = stream ? stream.as<float>() : nullptr};
  if (many) {
    KRAIT_WITH_CUDA(cuda::one_pass(cuda::rows_of(p), end, c.stream));
  } else {
    KRAIT_WITH_CUDA(cuda::few_rows(p, end, c.stream));
  }
  return true;
}

void forward(Context& c, const Sizes& z, const Tensor& x, const Tensor& w, const Tensor& bias,
             const Tensor& y, const Tensor& stream) {
  if (y.numel() == 0) return;
  Scratch s(c);
  if (c.device.type == Device::cpu && z.M <= few_rows_for(w.dtype)) {
    few_rows(c, z, x, w, bias, y, stream);
    return;
  }
  if (c.device.type == Device::cuda && few_rows_on_gpu(c, z, x, w, bias, y, stream)) return;
  const Tensor ready = in_type(c, x, w.dtype);
  const bool in_place = stream && stream.data == y.data;
  std::optional<Matrix> plus;
  if (stream && !in_place) plus = matrix(stream);
  multiply(c, matrix(ready), matrix(w).transposed(), y,
           {.bias = bias ? bias.as<float>() : nullptr,
            .add = in_place,
            .plus = plus ? &*plus : nullptr});
}

void sum_rows_on_gpu(Context& c, const Tensor& dy, const GradTarget& to, int64_t M, int64_t N) {
  const Tensor parts = c.scratch({cuda::parts_of_sum(M), N}, DType::f32);
  if (c.planning()) return;
  KRAIT_WITH_CUDA(cuda::sum_rows(dy.data, dy.dtype == DType::bf16, dy.row_stride(), M, N,
                                 to.grad.as<float>(), to.add, parts.as<float>(), c.stream));
}

void sum_rows(Context& c, const Tensor& dy, const GradTarget& to) {
  const LinearKernels& k = KRAIT_PICK_ISA(linear_kernels);
  const int64_t N = dy.size(-1), M = N == 0 ? 0 : dy.numel() / N, step = dy.row_stride();
  if (c.device.type == Device::cuda) return sum_rows_on_gpu(c, dy, to, M, N);
  if (c.planning()) return;
  parallel_ranges(N, 64, [&](int64_t n, int64_t end) {
    const auto* at =
        static_cast<const std::byte*>(dy.data) + n * static_cast<int64_t>(size_of(dy.dtype));
    (dy.dtype == DType::bf16 ? k.sum_rows_bf16 : k.sum_rows_f32)(at, step, M, end - n,
                                                                 to.grad.as<float>() + n, to.add);
  });
}

// The weight's gradient waits for an x that backward has yet to make again.
enum class Part { all, without_weight, weight };

// `rounded`: dy in bfloat16, where that was written beside it.
void backward(Context& c, const Sizes& z, const Tensor& x, const Tensor& w, const Tensor& bias,
              const Tensor& dy, const Tensor& rounded, Part part) {
  const auto into = [&](bool now, const Tensor& t) {
    return now ? c.tape->grad_into(c, t) : GradTarget();
  };
  const GradTarget dx = into(part != Part::weight, x);
  const GradTarget dw = into(part != Part::without_weight, w);
  const GradTarget db = into(part != Part::weight, bias);
  const double size = static_cast<double>(z.N * z.K),
               of_each = static_cast<double>(dy.bytes() + x.bytes());
  if (dx.grad)
    c.cost("linear backward", of_each + static_cast<double>(w.bytes()),
           2.0 * static_cast<double>(z.M) * size);
  if (dw.grad)
    c.cost("linear backward", of_each + 4.0 * size, 2.0 * static_cast<double>(z.M) * size);
  Scratch s(c);
  if (db.grad) sum_rows(c, dy, db);
  if (!dx.grad && !dw.grad) return;
  const Tensor dy_ready = rounded && w.dtype == DType::bf16 ? rounded : in_type(c, dy, w.dtype);
  if (dw.grad && dw.grad.numel() > 0) {
    const Tensor x_ready = in_type(c, x, w.dtype);
    multiply(c, matrix(dy_ready).transposed(), matrix(x_ready), dw.grad, {.add = dw.add});
  }
  // Last: who reads it next finds part of it in a cache.
  if (dx.grad && dx.grad.numel() > 0)
    multiply(c, matrix(dy_ready), matrix(w), dx.grad, {.add = dx.add});
}

// `into` is where the result goes, if there is such a place.
Tensor run(Context& c, const Tensor& x, const Tensor& w, const Tensor& bias, DType out,
           const Tensor& stream, const Tensor& into) {
  const Sizes z = check(x, w, bias, out, stream);
  require(!into || !c.tape, "[linear] into memory that backward does not keep");
  // Of few terms a product is hardly more work than writing its result.
  const Kept kept(c, z.N < 16 * z.K || (c.tape && c.tape->awaited(x)));
  Shape shape = x.shape;
  shape[-1] = z.N;
  require(!into || (into.shape == shape && into.dtype == out && into.contiguous()),
          "[linear] the result: expected contiguous {} {}, got {} {}", name_of(out), shape,
          name_of(into.dtype), into.shape);
  Tensor y = into ? into : c.alloc(shape, out);
  c.cost("linear",
         static_cast<double>(x.bytes() + w.bytes() + bias.bytes() + y.bytes() + stream.bytes()),
         2.0 * static_cast<double>(z.M * z.N * z.K));
  forward(c, z, x, w, bias, y, stream);
  if (!c.tape || !needs_grad({x, w, bias, stream})) return y;
  if (stream) {
    c.tape->watch_sum(y, stream);
  } else {
    c.tape->watch(y);
  }
  c.tape->record([=](Context& b) {
    const Tensor dy = b.tape->grad(y), rounded = b.tape->rounded_grad(y);
    const bool awaited = b.tape->awaited(x);
    if (dy) backward(b, z, x, w, bias, dy, rounded, awaited ? Part::without_weight : Part::all);
    if (dy && awaited)
      b.tape->when_remade(
          x, [=](Context& later) { backward(later, z, x, w, bias, dy, rounded, Part::weight); });
    b.tape->uncover(y);
  });
  return y;
}

}  // namespace

Tensor linear(Context& c, const Tensor& x, const Tensor& w, const Tensor& bias, DType out) {
  return run(c, x, w, bias, out, {}, {});
}

void linear_into(Context& c, const Tensor& x, const Tensor& w, const Tensor& y) {
  run(c, x, w, {}, y.dtype, {}, y);
}

Tensor linear_add(Context& c, const Tensor& x, const Tensor& w, const Tensor& bias,
                  const Tensor& stream, bool in_place) {
  return run(c, x, w, bias, DType::f32, stream, in_place ? stream : Tensor());
}

}  // namespace krait::ops
