#include <algorithm>
#include <cstring>

#include "krait/autograd/tape.h"
#include "krait/base/threads.h"
#include "krait/ops/cross_entropy/cross_entropy.h"
#include "krait/ops/cross_entropy/cuda.h"
#include "krait/ops/cross_entropy/kernels.h"
#include "krait/tensor/cuda/rows.h"
#include "krait/tensor/memory.h"
#include "krait/tensor/products.h"

namespace krait::ops {

namespace {

// Memory for the logits of a block of rows. Larger blocks read w and update dw fewer times.
constexpr int64_t kBlockBytes = int64_t{32} << 20, kBlockBytesOnGpu = int64_t{832} << 20;

// Blocks of about one size, on a GPU of whole tiles of the products but for the last one. Where nothing is differentiated
// fewer rows may follow in memory planned for these, and be one block larger than these have: that one is planned.
int64_t rows_of_block(const Context& c, int64_t M, int64_t V) {
  const bool gpu = c.device.type == Device::cuda;
  const int64_t bytes = gpu ? kBlockBytesOnGpu : kBlockBytes, unit = gpu ? 128 : 16;
  const int64_t most = std::max<int64_t>(bytes / (4 * V) / unit * unit, unit);
  const int64_t blocks = (M + most - 1) / most;
  if (blocks <= 1) return M;
  if (c.planning() && !c.tape) return most;
  const int64_t each = (M + blocks - 1) / blocks;
  return gpu ? (each + unit - 1) / unit * unit : each;
}

void check(const Tensor& h, const Tensor& w, const Tensor& targets) {
  const auto is_float = [](DType t) { return t == DType::f32 || t == DType::bf16; };
  require(is_float(h.dtype) && is_float(w.dtype),
          "[cross_entropy] expected float32 or bfloat16, got h {}, w {}", name_of(h.dtype),
          name_of(w.dtype));
  require(w.rank() == 2 && w.contiguous() && w.numel() > 0,
          "[cross_entropy] w: expected contiguous (V, D), got {}", w.shape);
  require(h.rank() >= 1 && h.contiguous() && h.size(-1) == w.size(1),
          "[cross_entropy] h: expected contiguous (..., D={}), got {}", w.size(1), h.shape);
  Shape leading = h.shape;
  --leading.rank;
  require(targets.dtype == DType::i32 && targets.contiguous() && targets.shape == leading,
          "[cross_entropy] targets: expected contiguous int32 {}, got {} {}", leading,
          name_of(targets.dtype), targets.shape);
}

void check_targets(const int32_t* targets, int64_t M, int64_t V) {
  for (int64_t i = 0; i < M; ++i)
    require(targets[i] >= -1 && targets[i] < V,
            "[cross_entropy] targets: row {} holds {}, expected -1 or 0 to {}", i, targets[i],
            V - 1);
}

// nll of rows [begin, end), and their logits (end - begin, V) turned into gradients where asked.
void run_rows(Context& c, const Tensor& logits, const Tensor& targets, int64_t begin,
              LossScale scale, LogitsGrad grad, const Tensor& nll) {
  const int64_t rows = logits.size(0), V = logits.size(1);
  const int32_t* const target = targets.as<int32_t>() + begin;
  float* const out = nll.as<float>() + begin;
  if (c.device.type == Device::cuda) {
    KRAIT_WITH_CUDA(
        cuda::cross_entropy_rows(logits.as<float>(), rows, V, target, scale, grad, out, c.stream));
    return;
  }
  const CrossEntropyKernels& k = KRAIT_PICK_ISA(cross_entropy_kernels);
  const float factor = scale.value();
  parallel_for(rows, [&](int64_t i) {
    float* const row = logits.as<float>() + i * V;
    if (target[i] >= 0) {
      out[i] = static_cast<float>(k.row(row, V, target[i], factor, grad));
    } else {
      out[i] = 0;
      std::memset(row, 0, static_cast<size_t>(V) * sizeof(float));
    }
  });
}

void sum_loss(Context& c, const CrossEntropyResult& result, LossScale scale) {
  const int64_t M = result.nll.numel();
  const float* const nll = result.nll.as<float>();
  if (c.device.type == Device::cuda) {
    KRAIT_WITH_CUDA(cuda::cross_entropy_loss(nll, M, scale, result.loss.as<float>(), c.stream));
    return;
  }
  double sum = 0;
  for (int64_t i = 0; i < M; ++i) sum += static_cast<double>(nll[i]);
  *result.loss.as<float>() = static_cast<float>(static_cast<double>(scale.value()) * sum);
}

}  // namespace

CrossEntropyResult linear_cross_entropy(Context& c, const Tensor& h, const Tensor& w,
                                        const Tensor& targets, LossScale scale) {
  check(h, w, targets);
  const int64_t V = w.size(0), D = w.size(1), M = h.numel() / D;
  const CrossEntropyResult result{c.alloc({1}, DType::f32), c.alloc(targets.shape, DType::f32)};
  GradTarget dh, dw;
  if (c.tape && needs_grad({h, w})) {
    dh = c.tape->grad_into(c, h);
    dw = c.tape->grad_into(c, w);
  }
  c.cost("cross_entropy",
         static_cast<double>(h.bytes() + w.bytes() + dh.grad.bytes() + dw.grad.bytes()),
         2.0 * static_cast<double>(M * V * D) * (1 + (dh.grad ? 1 : 0) + (dw.grad ? 1 : 0)));
  const LogitsGrad grad = !dh.grad && !dw.grad     ? LogitsGrad::none
                          : w.dtype == DType::bf16 ? LogitsGrad::bf16
                                                   : LogitsGrad::f32;

  Scratch block_scratch(c);
  const int64_t rows = rows_of_block(c, M, V);
  const Tensor logits = c.scratch({rows, V}, DType::f32);
  const Tensor flat = h.detach().reshape({M, D});
  if (!c.planning() && c.device.type == Device::cpu) check_targets(targets.as<int32_t>(), M, V);
  for (int64_t begin = 0; begin < M; begin += rows) {
    const int64_t end = std::min(M, begin + rows);
    Scratch s(c);
    const Tensor hb = in_type(c, flat.slice(0, begin, end), w.dtype);
    const Tensor lb = logits.slice(0, 0, end - begin);
    multiply(c, matrix(hb), matrix(w).transposed(), lb);
    if (!c.planning()) run_rows(c, lb, targets, begin, scale, grad, result.nll);
    Matrix dlogits = matrix(lb);
    if (grad == LogitsGrad::bf16) {  // in the first half of each row
      dlogits.dtype = DType::bf16;
      dlogits.row_step *= 2;
    }
    if (dh.grad) {
      const Tensor part = dh.grad.reshape({M, D}).slice(0, begin, end);
      multiply(c, dlogits, matrix(w), part, {.add = dh.add});
    }
    if (dw.grad)
      multiply(c, dlogits.transposed(), matrix(hb), dw.grad, {.add = dw.add || begin > 0});
  }
  if (c.planning()) return result;
  if (dw.grad && M == 0 && !dw.add) fill(c, dw.grad, 0.0f);
  sum_loss(c, result, scale);
  return result;
}

// What smoothing s adds to a row: s (logit of the target - mean of all logits) to its loss, and the gradient of
// that to `drow`, where there is one.
static float smooth(const float* logits, float* drow, int64_t V, int32_t target, float scale,
                    float s) {
  double mean = 0;
  for (int64_t v = 0; v < V; ++v) mean += static_cast<double>(logits[v]);
  mean /= static_cast<double>(V);
  if (drow) {
    for (int64_t v = 0; v < V; ++v) drow[v] -= scale * s / static_cast<float>(V);
    drow[target] += scale * s;
  }
  return s * static_cast<float>(static_cast<double>(logits[target]) - mean);
}

// The same of all rows that count.
static void smooth(Context& c, const Tensor& logits, const Tensor& drows, const Tensor& targets,
                   LossScale scale, float s, const Tensor& nll) {
  const int64_t V = logits.size(-1), M = logits.numel() / V;
  float* const d = drows ? drows.as<float>() : nullptr;
  if (c.device.type == Device::cuda) {
    KRAIT_WITH_CUDA(cuda::cross_entropy_smooth(logits.as<float>(), M, V, targets.as<int32_t>(),
                                               scale, s, d, nll.as<float>(), c.stream));
    return;
  }
  for (int64_t i = 0; i < M; ++i)
    if (const int32_t target = targets.as<int32_t>()[i]; target >= 0)
      nll.as<float>()[i] +=
          smooth(logits.as<float>() + i * V, d ? d + i * V : nullptr, V, target, scale.value(), s);
}

static void add_to(Context& c, const Tensor& rows, const GradTarget& d) {
  const int64_t n = rows.numel();
  if (c.device.type == Device::cuda) {
    const cuda::RowsToConvert all{rows.data, false, n, d.grad.data, false, n, 1, n, d.add};
    KRAIT_WITH_CUDA(cuda::convert_rows(all, c.stream));
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    float& to = d.grad.as<float>()[i];
    to = d.add ? to + rows.as<float>()[i] : rows.as<float>()[i];
  }
}

CrossEntropyResult cross_entropy(Context& c, const Tensor& logits, const Tensor& targets,
                                 LossScale scale, float smoothing) {
  require(smoothing >= 0 && smoothing < 1,
          "[cross_entropy] smoothing: expected at least 0 and below 1, got {}", smoothing);
  require(logits.dtype == DType::f32 && logits.contiguous() && logits.rank() >= 2 &&
              logits.size(-1) > 0,
          "[cross_entropy] logits: expected contiguous float32 (..., V), got {} {}",
          name_of(logits.dtype), logits.shape);
  Shape leading = logits.shape;
  --leading.rank;
  require(targets.dtype == DType::i32 && targets.contiguous() && targets.shape == leading,
          "[cross_entropy] targets: expected contiguous int32 {}, got {} {}", leading,
          name_of(targets.dtype), targets.shape);
  const int64_t V = logits.size(-1), M = logits.numel() / V;
  const CrossEntropyResult result{c.alloc({1}, DType::f32), c.alloc(targets.shape, DType::f32)};
  const GradTarget d = c.tape && needs_grad({logits}) ? c.tape->grad_into(c, logits) : GradTarget();
  c.cost("cross_entropy", 2.0 * static_cast<double>(logits.bytes()),
         4.0 * static_cast<double>(logits.numel()));
  Scratch scratch(c);
  const Tensor rows = c.scratch({M, V}, DType::f32);
  if (c.planning()) return result;
  if (c.device.type == Device::cpu) check_targets(targets.as<int32_t>(), M, V);
  copy(c, logits.detach().reshape({M, V}), rows);
  run_rows(c, rows, targets, 0, scale, d.grad ? LogitsGrad::f32 : LogitsGrad::none, result.nll);
  if (smoothing > 0)
    smooth(c, logits, d.grad ? rows : Tensor(), targets, scale, smoothing, result.nll);
  if (d.grad) add_to(c, rows, d);
  sum_loss(c, result, scale);
  return result;
}

}  // namespace krait::ops
