// mamba1_step at the sizes of mamba-130m: GB/s of weights and states.
#include "krait/ops/mamba1_step/mamba1_step.h"
#include "krait/ops/step_bench.h"

namespace krait::ops {
namespace {

constexpr int64_t kWidth = StepBench::kWidth, kInner = 1536, kStates = 16, kRank = 48,
                  kTaps = StepBench::kTaps;

void mamba1_step_bench(benchmark::State& state) {
  StepBench bench(state);
  const DType type = bench.type;
  const auto make = [&] {
    StepLayer<Mamba1Layer> l;
    Mamba1Layer& w = l.weights;
    w.norm = bench.random({kWidth}, DType::f32, 1);
    w.in_proj = bench.random({2 * kInner, kWidth}, type, 0.03);
    w.conv = bench.random({kInner, kTaps}, DType::f32, 0.5);
    w.conv_bias = bench.random({kInner}, DType::f32, 0.5);
    w.x_proj = bench.random({kRank + 2 * kStates, kInner}, type, 0.03);
    w.dt_proj = bench.random({kInner, kRank}, type, 0.1);
    w.dt_bias = bench.random({kInner}, DType::f32, 1);
    w.A_log = bench.random({kInner, kStates}, DType::f32, 1);
    w.D = bench.random({kInner}, DType::f32, 1);
    w.out_proj = bench.random({kWidth, kInner}, type, 0.03);
    l.conv = bench.random({bench.B, kInner, kTaps}, type, 1);
    l.ssm = bench.random({bench.B, kInner, kStates}, DType::f32, 1);
    return l;
  };
  bench.run(
      make,
      [&](const StepLayer<Mamba1Layer>& l, const Tensor& x) {
        return mamba1_step(bench.c, l.weights, x, l.conv, l.ssm);
      },
      [](const StepLayer<Mamba1Layer>& l) {
        const Mamba1Layer& w = l.weights;
        return w.in_proj.bytes() + w.x_proj.bytes() + w.dt_proj.bytes() + w.out_proj.bytes() +
               2 * (l.conv.bytes() + l.ssm.bytes());
      });
}

BENCHMARK(mamba1_step_bench)
    ->ArgNames({"B", "bf16"})
    ->ArgsProduct({{1, 8}, {0, 1}})
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace krait::ops
