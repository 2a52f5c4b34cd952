#include <algorithm>
#include <cstring>

#include "krait/autograd/tape.h"
#include "krait/base/threads.h"
#include "krait/ops/cross_entropy/cross_entropy.h"
#include "krait/ops/cross_entropy/kernels.h"
#include "krait/tensor/cpu/convert.h"
#include "krait/tensor/cpu/matmul.h"

namespace krait::ops {

namespace {

// Memory for the logits of a block of rows. Larger blocks read w and update dw fewer times.
constexpr int64_t kBlockBytes = int64_t{32} << 20;

int64_t rows_of_block(int64_t M, int64_t V) {
  const int64_t most = std::max<int64_t>(kBlockBytes / (4 * V) / 16 * 16, 16);
  const int64_t blocks = (M + most - 1) / most;
  return blocks <= 1 ? M : std::min(most, (M + blocks - 1) / blocks);
}

void check(const Tensor& h, const Tensor& w, const Tensor& targets) {
  const auto is_float = [](DType t) { return t == DType::f32 || t == DType::bf16; };
  require(is_float(h.dtype) && is_float(w.dtype), "[cross_entropy] expected float32 or bfloat16, got h {}, w {}",
          name_of(h.dtype), name_of(w.dtype));
  require(w.rank() == 2 && w.contiguous() && w.numel() > 0, "[cross_entropy] w: expected contiguous (V, D), got {}",
          w.shape);
  require(h.rank() >= 1 && h.contiguous() && h.size(-1) == w.size(1),
          "[cross_entropy] h: expected contiguous (..., D={}), got {}", w.size(1), h.shape);
  Shape leading = h.shape;
  --leading.rank;
  require(targets.dtype == DType::i32 && targets.contiguous() && targets.shape == leading,
          "[cross_entropy] targets: expected contiguous int32 {}, got {} {}", leading, name_of(targets.dtype),
          targets.shape);
}

void check_targets(const int32_t* targets, int64_t M, int64_t V) {
  for (int64_t i = 0; i < M; ++i)
    require(targets[i] >= -1 && targets[i] < V, "[cross_entropy] targets: row {} holds {}, expected -1 or 0 to {}", i,
            targets[i], V - 1);
}

}  // namespace

CrossEntropyResult linear_cross_entropy(Context& c, const Tensor& h, const Tensor& w, const Tensor& targets,
                                        float scale) {
  check(h, w, targets);
  const int64_t V = w.size(0), D = w.size(1), M = h.numel() / D;
  const CrossEntropyResult result{c.alloc({1}, DType::f32), c.alloc(targets.shape, DType::f32)};
  GradTarget dh, dw;
  if (c.tape && needs_grad({h, w})) {
    dh = c.tape->grad_into(c, h);
    dw = c.tape->grad_into(c, w);
  }
  c.cost("cross_entropy", static_cast<double>(h.bytes() + w.bytes() + dh.grad.bytes() + dw.grad.bytes()),
         2.0 * static_cast<double>(M * V * D) * (1 + (dh.grad ? 1 : 0) + (dw.grad ? 1 : 0)));
  const LogitsGrad grad = !dh.grad && !dw.grad       ? LogitsGrad::none
                          : w.dtype == DType::bf16 ? LogitsGrad::bf16
                                                   : LogitsGrad::f32;

  Scratch block_scratch(c);
  const int64_t rows = rows_of_block(M, V);
  const Tensor logits = c.scratch({rows, V}, DType::f32);
  const Tensor flat = h.detach().reshape({M, D});
  if (!c.planning()) check_targets(targets.as<int32_t>(), M, V);
  const CrossEntropyKernels& k = KRAIT_PICK_ISA(cross_entropy_kernels);
  for (int64_t begin = 0; begin < M; begin += rows) {
    const int64_t end = std::min(M, begin + rows);
    Scratch s(c);
    const Tensor hb = cpu::in_type(c, flat.slice(0, begin, end), w.dtype);
    const Tensor lb = logits.slice(0, 0, end - begin);
    cpu::matmul_into(c, cpu::matrix(hb), cpu::matrix(w).transposed(), lb);
    if (!c.planning()) {
      parallel_for(end - begin, [&](int64_t i) {
        const int32_t target = targets.as<int32_t>()[begin + i];
        float* const row = logits.as<float>() + i * V;
        float& nll = result.nll.as<float>()[begin + i];
        if (target >= 0) {
          nll = static_cast<float>(k.row(row, V, target, scale, grad));
        } else {
          nll = 0;
          std::memset(row, 0, static_cast<size_t>(V) * sizeof(float));
        }
      });
    }
    cpu::Matrix dlogits = cpu::matrix(lb);
    if (grad == LogitsGrad::bf16) {  // in the first half of each row
      dlogits.dtype = DType::bf16;
      dlogits.row_step *= 2;
    }
    if (dh.grad) {
      const Tensor part = dh.grad.reshape({M, D}).slice(0, begin, end);
      cpu::matmul_into(c, dlogits, cpu::matrix(w), part, {.add = dh.add});
    }
    if (dw.grad)
      cpu::matmul_into(c, dlogits.transposed(), cpu::matrix(hb), dw.grad, {.add = dw.add || begin > 0});
  }
  if (c.planning()) return result;
  if (dw.grad && M == 0 && !dw.add) std::memset(dw.grad.data, 0, dw.grad.bytes());
  double sum = 0;
  for (int64_t i = 0; i < M; ++i) sum += static_cast<double>(result.nll.as<float>()[i]);
  *result.loss.as<float>() = static_cast<float>(static_cast<double>(scale) * sum);
  return result;
}

}  // namespace krait::ops
