#include <algorithm>

#include "krait/autograd/tape.h"
#include "krait/base/threads.h"
#include "krait/ops/mamba3_steps/cuda.h"
#include "krait/ops/mamba3_steps/mamba3_steps.h"
#include "krait/ops/mamba3_steps/reference.h"
#include "krait/tensor/cuda/rows.h"

namespace krait::ops {
namespace {

namespace formula = mamba3_steps_reference;

constexpr int64_t kRows = cuda::kStepsRows;  // of a piece

struct Call {
  Tensor raw_dt, raw_A, dt_bias, dt, adt;
  float floor;
  DecayKind kind;

  int64_t H() const { return raw_dt.size(-1); }
  int64_t rows() const { return raw_dt.shape.rows(); }
  static float* row(const Tensor& t, int64_t i) {
    return t ? static_cast<float*>(t.data) + i * t.row_stride() : nullptr;
  }
};

cuda::StepRows gpu_rows(const Tensor& t, bool add = false) {
  return t ? cuda::StepRows{t.as<float>(), t.row_stride(), add} : cuda::StepRows();
}

cuda::StepsCall gpu_call(const Call& q) {
  return {.rows = q.rows(),
          .H = q.H(),
          .raw_dt = gpu_rows(q.raw_dt),
          .raw_A = gpu_rows(q.raw_A),
          .dt = gpu_rows(q.dt),
          .adt = gpu_rows(q.adt),
          .dt_bias = q.dt_bias.as<float>(),
          .floor = q.floor,
          .heavy_tailed = q.kind == DecayKind::heavy_tailed};
}

void forward(const Call& q) {
  parallel_ranges(q.rows(), kRows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t h = 0; h < q.H(); ++h) {
        const float dt = formula::softplus(Call::row(q.raw_dt, t)[h] + q.dt_bias.as<float>()[h]);
        Call::row(q.dt, t)[h] = dt;
        Call::row(q.adt, t)[h] =
            formula::decay_rate(Call::row(q.raw_A, t)[h], q.floor, q.kind) * dt;
      }
  });
}

// d softplus(x) / dx
float softplus_slope(float x) { return x > 20 ? 1.0f : 1.0f / (1.0f + std::exp(-x)); }

// dA / d raw_A
float decay_slope(float x, float A, float floor, DecayKind kind) {
  if (A >= -floor) return 0;
  if (kind == DecayKind::softplus) return -softplus_slope(x);
  return x >= 0 ? -1.0f : -A * A;
}

void backward(Context& c, const Call& q) {
  const Tensor ddt = c.tape->grad(q.dt), dadt = c.tape->grad(q.adt);
  if (!ddt && !dadt) return;
  const GradTarget g_dt = c.tape->grad_into(c, q.raw_dt), g_A = c.tape->grad_into(c, q.raw_A),
                   g_bias = c.tape->grad_into(c, q.dt_bias);
  const int64_t H = q.H(), pieces = (q.rows() + kRows - 1) / kRows;
  Scratch scratch(c);
  const Tensor sums = c.scratch({pieces, H}, DType::f32);
  const Tensor parts = c.scratch({cuda::parts_of_sum(pieces), H}, DType::f32);
  if (c.planning()) return;
  if (c.device.type == Device::cuda) {
    const cuda::StepsBackward b{gpu_call(q),
                                gpu_rows(ddt),
                                gpu_rows(dadt),
                                gpu_rows(g_dt.grad, g_dt.add),
                                gpu_rows(g_A.grad, g_A.add),
                                sums.as<float>()};
    KRAIT_WITH_CUDA(cuda::mamba3_steps_backward(b, c.stream));
    if (g_bias.grad)
      KRAIT_WITH_CUDA(cuda::sum_rows(sums.data, false, H, pieces, H, g_bias.grad.as<float>(),
                                     g_bias.add, parts.as<float>(), c.stream));
    return;
  }
  const auto put = [](const GradTarget& g, int64_t t, int64_t h, float value) {
    if (!g.grad) return;
    float& to = Call::row(g.grad, t)[h];
    to = g.add ? to + value : value;
  };
  parallel_for(pieces, [&](int64_t piece) {
    float* sum = sums.as<float>() + piece * H;
    std::fill_n(sum, H, 0.0f);
    for (int64_t t = piece * kRows; t < std::min(q.rows(), (piece + 1) * kRows); ++t)
      for (int64_t h = 0; h < H; ++h) {
        const float x = Call::row(q.raw_dt, t)[h] + q.dt_bias.as<float>()[h];
        const float raw_A = Call::row(q.raw_A, t)[h];
        const float A = formula::decay_rate(raw_A, q.floor, q.kind);
        const float of_adt = dadt ? Call::row(dadt, t)[h] : 0.0f;
        const float of_dt = (ddt ? Call::row(ddt, t)[h] : 0.0f) + of_adt * A;
        const float of_raw = of_dt * softplus_slope(x);
        put(g_dt, t, h, of_raw);
        put(g_A, t, h, of_adt * Call::row(q.dt, t)[h] * decay_slope(raw_A, A, q.floor, q.kind));
        sum[h] += of_raw;
      }
  });
  if (!g_bias.grad) return;
  for (int64_t h = 0; h < H; ++h) {
    float sum = g_bias.add ? g_bias.grad.as<float>()[h] : 0.0f;
    for (int64_t piece = 0; piece < pieces; ++piece) sum += sums.as<float>()[piece * H + h];
    g_bias.grad.as<float>()[h] = sum;
  }
}

}  // namespace

Mamba3Steps mamba3_steps(Context& c, const Tensor& raw_dt, const Tensor& raw_A,
                         const Tensor& dt_bias, float floor, DecayKind kind) {
  require(raw_dt.rank() == 3, "[mamba3_steps] raw_dt: expected (B, L, H), got {}", raw_dt.shape);
  for (const auto& [name, t] : {std::pair("raw_dt", raw_dt), {"raw_A", raw_A}})
    require(t.shape == raw_dt.shape && t.dtype == DType::f32 && t.row_strided(),
            "[mamba3_steps] {}: expected float32 {} with rows at one distance, got {} {}", name,
            raw_dt.shape, name_of(t.dtype), t.shape);
  require(dt_bias.shape == Shape{raw_dt.size(2)} && dt_bias.dtype == DType::f32,
          "[mamba3_steps] dt_bias: expected float32 {}, got {} {}", Shape{raw_dt.size(2)},
          name_of(dt_bias.dtype), dt_bias.shape);
  Call q{
      raw_dt, raw_A, dt_bias, c.alloc(raw_dt.shape, DType::f32), c.alloc(raw_dt.shape, DType::f32),
      floor,  kind};
  const double bytes = static_cast<double>(4 * raw_dt.bytes());
  c.cost("mamba3_steps", bytes, 12 * static_cast<double>(raw_dt.numel()));
  if (c.planning()) {
  } else if (c.device.type == Device::cuda) {
    KRAIT_WITH_CUDA(cuda::mamba3_steps(gpu_call(q), c.stream));
  } else {
    forward(q);
  }
  if (c.tape && needs_grad({raw_dt, raw_A, dt_bias})) {
    c.tape->watch(q.dt);
    c.tape->watch(q.adt);
    c.tape->record([q, bytes](Context& b) {
      b.cost("mamba3_steps backward", 2 * bytes, 24 * static_cast<double>(q.raw_dt.numel()));
      backward(b, q);
    });
  }
  return {q.dt, q.adt};
}

}  // namespace krait::ops
