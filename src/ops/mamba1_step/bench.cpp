// mamba1_step at the sizes of mamba-130m: GB/s of weights and states, which rotate through more memory than
// caches hold, as the layers of a model do.
#include <benchmark/benchmark.h>

#include "krait/base/rng.h"
#include "krait/ops/mamba1_step/mamba1_step.h"

namespace krait::ops {
namespace {

constexpr int64_t kWidth = 768, kInner = 1536, kStates = 16, kRank = 48, kTaps = 4, kLayers = 8;

// Arguments: B, bfloat16.
void mamba1_step_bench(benchmark::State& state) {
  const int64_t B = state.range(0);
  const DType type = state.range(1) ? DType::bf16 : DType::f32;
  Arena memory(size_t{1} << 30);
  Context c;
  c.arena = &memory;
  c.activation = type;
  uint64_t stream = 0;
  const auto random = [&](const Shape& shape, DType t, double scale) {
    const Tensor x = c.alloc(shape, t);
    const Philox rng{1, ++stream};
    for (int64_t i = 0; i < x.numel(); ++i) set(x, i, scale * rng.normal(static_cast<uint64_t>(i)));
    return x;
  };
  struct Layer {
    Mamba1Layer weights;
    Tensor conv, ssm;
  };
  std::vector<Layer> layers;
  for (int64_t i = 0; i < kLayers; ++i) {
    Layer& l = layers.emplace_back();
    Mamba1Layer& w = l.weights;
    w.norm = random({kWidth}, DType::f32, 1);
    w.in_proj = random({2 * kInner, kWidth}, type, 0.03);
    w.conv = random({kInner, kTaps}, DType::f32, 0.5);
    w.conv_bias = random({kInner}, DType::f32, 0.5);
    w.x_proj = random({kRank + 2 * kStates, kInner}, type, 0.03);
    w.dt_proj = random({kInner, kRank}, type, 0.1);
    w.dt_bias = random({kInner}, DType::f32, 1);
    w.A_log = random({kInner, kStates}, DType::f32, 1);
    w.D = random({kInner}, DType::f32, 1);
    w.out_proj = random({kWidth, kInner}, type, 0.03);
    l.conv = random({B, kInner, kTaps}, DType::f32, 1);
    l.ssm = random({B, kInner, kStates}, DType::f32, 1);
  }
  const Tensor x = random({B, 1, kWidth}, DType::f32, 1);
  const size_t low = memory.low();
  size_t at = 0;
  for (auto _ : state) {
    const Layer& l = layers[at++ % layers.size()];
    benchmark::DoNotOptimize(mamba1_step(c, l.weights, x, l.conv, l.ssm).data);
    memory.set_low(low);
  }
  const Layer& l = layers[0];
  const size_t bytes = l.weights.in_proj.bytes() + l.weights.x_proj.bytes() +
                       l.weights.dt_proj.bytes() + l.weights.out_proj.bytes() +
                       2 * (l.conv.bytes() + l.ssm.bytes());
  state.SetBytesProcessed(static_cast<int64_t>(bytes) * state.iterations());
}

BENCHMARK(mamba1_step_bench)
    ->ArgNames({"B", "bf16"})
    ->ArgsProduct({{1, 8}, {0, 1}})
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace krait::ops
