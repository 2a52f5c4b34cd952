// mamba2_step at the sizes of mamba2-130m: GB/s of weights and states.
#include "krait/ops/mamba2_step/mamba2_step.h"
#include "krait/ops/step_bench.h"

namespace krait::ops {
namespace {

constexpr int64_t kWidth = StepBench::kWidth, kHeads = 24, kChannels = 64,
                  kInner = kHeads * kChannels, kStates = 128, kConvolved = kInner + 2 * kStates,
                  kTaps = StepBench::kTaps;

void mamba2_step_bench(benchmark::State& state) {
  StepBench bench(state);
  const DType type = bench.type;
  const auto make = [&] {
    StepLayer<Mamba2Layer> l;
    Mamba2Layer& w = l.weights;
    w.norm = bench.random({kWidth}, DType::f32, 1);
    w.in_proj = bench.random({kInner + kConvolved + kHeads, kWidth}, type, 0.03);
    w.conv = bench.random({kConvolved, kTaps}, DType::f32, 0.5);
    w.conv_bias = bench.random({kConvolved}, DType::f32, 0.5);
    w.dt_bias = bench.random({kHeads}, DType::f32, 1);
    w.A_log = bench.random({kHeads}, DType::f32, 1);
    w.D = bench.random({kHeads}, DType::f32, 1);
    w.gate_norm = bench.random({kInner}, DType::f32, 1);
    w.out_proj = bench.random({kWidth, kInner}, type, 0.03);
    l.conv = bench.random({bench.B, kConvolved, kTaps}, type, 1);
    l.ssm = bench.random({bench.B, kHeads, kChannels, kStates}, DType::f32, 1);
    return l;
  };
  bench.run(
      make,
      [&](const StepLayer<Mamba2Layer>& l, const Tensor& x) {
        return mamba2_step(bench.c, l.weights, x, l.conv, l.ssm);
      },
      [](const StepLayer<Mamba2Layer>& l) {
        return l.weights.in_proj.bytes() + l.weights.out_proj.bytes() +
               2 * (l.conv.bytes() + l.ssm.bytes());
      });
}

BENCHMARK(mamba2_step_bench)
    ->ArgNames({"B", "bf16"})
    ->ArgsProduct({{1, 8}, {0, 1}})
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace krait::ops
