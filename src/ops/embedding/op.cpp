#include <algorithm>

#include "krait/autograd/tape.h"
#include "krait/base/threads.h"
#include "krait/ops/embedding/cuda.h"
#include "krait/ops/embedding/embedding.h"
#include "krait/tensor/memory.h"

namespace krait::ops {
namespace {

constexpr int64_t kRows = 64;      // tokens of one piece of the gather
constexpr int64_t kColumns = 128;  // of D, in one piece of the scatter

template <class W>
void gather(const Tensor& tokens, const Tensor& w, const Tensor& y) {
  const int64_t D = w.size(1);
  const int32_t* ids = tokens.as<int32_t>();
  parallel_ranges(tokens.numel(), kRows, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const W* row = w.as<W>() + ids[i] * D;
      float* out = y.as<float>() + i * D;
      for (int64_t j = 0; j < D; ++j) out[j] = static_cast<float>(row[j]);
    }
  });
}

// Tokens sorted by id and, within an id, by place; then sums of the runs of one id.
void scatter_add_on_gpu(Context& c, const Tensor& tokens, const Tensor& dy, const Tensor& dw) {
  const int64_t n = tokens.numel(), V = dw.size(0), D = dw.size(1);
  if (n == 0) return;
  size_t sort_bytes = 0;
  KRAIT_WITH_CUDA(cuda::embedding_sort_bytes(n, V, &sort_bytes));
  Scratch scratch(c);
  const Tensor sorted = c.scratch({3, n}, DType::i32),
               sums = c.scratch({cuda::embedding_pieces(n), 2, D}, DType::f32),
               sort = c.scratch({static_cast<int64_t>(sort_bytes)}, DType::u8);
  if (c.planning()) return;
  KRAIT_WITH_CUDA(cuda::embedding_backward({.tokens = tokens.as<int32_t>(),
                                            .n = n,
                                            .V = V,
                                            .D = D,
                                            .dy = dy.as<float>(),
                                            .dw = dw.as<float>(),
                                            .sorted = sorted.as<int32_t>(),
                                            .sums = sums.as<float>(),
                                            .sort = sort.data,
                                            .sort_bytes = sort_bytes},
                                           c.stream));
}

// Each piece owns some columns and walks the tokens in order: no two write to one place, and the order
// of the sum is that of the tokens.
void scatter_add(Context& c, const Tensor& tokens, const Tensor& dy, const Tensor& dw) {
  if (c.device.type == Device::cuda) return scatter_add_on_gpu(c, tokens, dy, dw);
  if (c.planning()) return;
  const int64_t D = dw.size(1), n = tokens.numel();
  const int32_t* ids = tokens.as<int32_t>();
  parallel_ranges(D, kColumns, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < n; ++i) {
      const float* row = dy.as<float>() + i * D;
      float* out = dw.as<float>() + ids[i] * D;
      for (int64_t j = begin; j < end; ++j) out[j] += row[j];
    }
  });
}

}  // namespace

Tensor embedding(Context& c, const Tensor& tokens, const Tensor& w) {
  require(tokens.dtype == DType::i32 && tokens.contiguous() && tokens.rank() < kMaxRank,
          "[embedding] tokens: expected contiguous int32 (...), got {} {}", name_of(tokens.dtype),
          tokens.shape);
  require((w.dtype == DType::f32 || w.dtype == DType::bf16) && w.contiguous() && w.rank() == 2,
          "[embedding] w: expected contiguous float32 or bfloat16 (V, D), got {} {}",
          name_of(w.dtype), w.shape);
  Shape shape = tokens.shape;
  shape.rank += 1;
  shape[-1] = w.size(1);
  Tensor y = c.alloc(shape, DType::f32);
  const double n = static_cast<double>(y.numel());
  c.cost("embedding", n * static_cast<double>(size_of(w.dtype) + 4), 0);
  if (!c.planning()) {
    if (c.device.type == Device::cuda) {
      KRAIT_WITH_CUDA(cuda::embedding_forward(tokens.as<int32_t>(), tokens.numel(), w.data,
                                              w.dtype == DType::bf16, w.size(1), y.as<float>(),
                                              c.stream));
    } else {
      w.dtype == DType::bf16 ? gather<bf16>(tokens, w, y) : gather<float>(tokens, w, y);
    }
  }
  if (c.tape && needs_grad({w})) {
    c.tape->watch(y);
    c.tape->record([=](Context& b) {
      const Tensor dy = b.tape->grad(y);
      if (!dy) return;
      const GradTarget dw = b.tape->grad_into(b, w);
      b.cost("embedding.backward", 12 * n + (dw.add ? 0 : 4.0 * static_cast<double>(w.numel())), n);
      if (!dw.add) fill(b, dw.grad, 0.0f);
      scatter_add(b, tokens, dy, dw.grad);
    });
  }
  return y;
}

}  // namespace krait::ops
