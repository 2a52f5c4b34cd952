// mamba2_step at the sizes of mamba2-130m: GB/s of weights and states, which rotate through more memory than
// caches hold, as the layers of a model do.
#include <benchmark/benchmark.h>

#include "krait/base/rng.h"
#include "krait/ops/mamba2_step/mamba2_step.h"

namespace krait::ops {
namespace {

constexpr int64_t kWidth = 768, kHeads = 24, kChannels = 64, kInner = kHeads * kChannels,
                  kStates = 128, kConvolved = kInner + 2 * kStates, kTaps = 4, kLayers = 8;

// Arguments: B, bfloat16.
void mamba2_step_bench(benchmark::State& state) {
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
    Mamba2Layer weights;
    Tensor conv, ssm;
  };
  std::vector<Layer> layers;
  for (int64_t i = 0; i < kLayers; ++i) {
    Layer& l = layers.emplace_back();
    Mamba2Layer& w = l.weights;
    w.norm = random({kWidth}, DType::f32, 1);
    w.in_proj = random({kInner + kConvolved + kHeads, kWidth}, type, 0.03);
    w.conv = random({kConvolved, kTaps}, DType::f32, 0.5);
    w.conv_bias = random({kConvolved}, DType::f32, 0.5);
    w.dt_bias = random({kHeads}, DType::f32, 1);
    w.A_log = random({kHeads}, DType::f32, 1);
    w.D = random({kHeads}, DType::f32, 1);
    w.gate_norm = random({kInner}, DType::f32, 1);
    w.out_proj = random({kWidth, kInner}, type, 0.03);
    l.conv = random({B, kConvolved, kTaps}, DType::f32, 1);
    l.ssm = random({B, kHeads, kChannels, kStates}, DType::f32, 1);
  }
  const Tensor x = random({B, 1, kWidth}, DType::f32, 1);
  const size_t low = memory.low();
  size_t at = 0;
  for (auto _ : state) {
    const Layer& l = layers[at++ % layers.size()];
    benchmark::DoNotOptimize(mamba2_step(c, l.weights, x, l.conv, l.ssm).data);
    memory.set_low(low);
  }
  const Layer& l = layers[0];
  const size_t bytes =
      l.weights.in_proj.bytes() + l.weights.out_proj.bytes() + 2 * (l.conv.bytes() + l.ssm.bytes());
  state.SetBytesProcessed(static_cast<int64_t>(bytes) * state.iterations());
}

BENCHMARK(mamba2_step_bench)
    ->ArgNames({"B", "bf16"})
    ->ArgsProduct({{1, 8}, {0, 1}})
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace krait::ops
