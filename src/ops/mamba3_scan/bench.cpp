// mamba3_scan at the shapes of the paper's models. `ns_element`: processor time of one (t, h, p, n) on one
// core, all ranks of it.
#include <benchmark/benchmark.h>

#include "krait/autograd/tape.h"
#include "krait/base/rng.h"
#include "krait/base/threads.h"
#include "krait/ops/mamba3_scan/mamba3_scan.h"

namespace krait::ops {
namespace {

enum Mode : int64_t { kForward, kBackward };

// Arguments: B, L, H, R, mode, bfloat16 activations; P = 64, N = 128.
void mamba3_scan_bench(benchmark::State& state) {
  const int64_t B = state.range(0), L = state.range(1), H = state.range(2), R = state.range(3);
  const int64_t P = 64, N = 128, T = 32, mode = state.range(4);
  const DType dtype = state.range(5) ? DType::bf16 : DType::f32;
  set_threads(1);
  Arena memory(size_t{3} << 30);
  Tape tape;
  Context c;
  c.arena = &memory;
  std::vector<Tensor> inputs;
  uint64_t seed = 0;
  const auto random = [&](const Shape& shape, DType type, double mean, double scale) {
    Tensor t = c.alloc(shape, type);
    const Philox rng{++seed, 2};
    for (int64_t i = 0; i < t.numel(); ++i)
      set(t, i, mean + scale * rng.normal(static_cast<uint64_t>(i)));
    if (mode == kBackward) {
      tape.watch(t);
      inputs.push_back(t);
    }
    return t;
  };
  Mamba3Inputs in;
  in.x = random({B, L, H * P}, dtype, 0, 1);
  in.z = random({B, L, H * P}, dtype, 0, 1);
  in.B = random({B, L, R, 1, N}, dtype, 0, 1);
  in.C = random({B, L, R, 1, N}, dtype, 0, 1);
  in.B_bias = random({H, R, N}, DType::f32, 1, 0.1);
  in.C_bias = random({H, R, N}, DType::f32, 1, 0.1);
  in.dt = random({B, L, H}, DType::f32, 0.05, 0.01);
  in.adt = random({B, L, H}, DType::f32, -0.05, 0.01);
  in.trap = random({B, L, H}, DType::f32, 0, 1);
  in.angle = random({B, L, T}, DType::f32, 0, 1);
  in.D = random({H}, DType::f32, 1, 0.1);
  if (R > 1) {
    in.mimo_x = random({H, R, P}, DType::f32, 0.25, 0.1);
    in.mimo_z = random({H, R, P}, DType::f32, 1, 0.1);
    in.mimo_o = random({H, R, P}, DType::f32, 0.25, 0.1);
    in.halves = true;
  }
  Mamba3State from, to;
  if (mode == kForward) {
    from = {random({B, H, T}, DType::f32, 3, 1), random({B, H, P, N}, DType::f32, 0, 1),
            random({B, R, H, N}, DType::f32, 0, 1), random({B, H, P}, DType::f32, 0, 1)};
    to = {c.alloc(from.angle.shape, DType::f32), c.alloc(from.ssm.shape, DType::f32),
          c.alloc(from.k.shape, DType::f32), c.alloc(from.v.shape, DType::f32)};
  } else {
    c.tape = &tape;
  }
  const size_t low = memory.low();
  for (auto _ : state) {
    if (mode == kBackward) state.PauseTiming();
    const Mamba3Result r = mamba3_scan(c, in, nullptr, from, to);
    if (mode == kBackward) {
      tape.seed(c, r.y);
      for (const Tensor& t : inputs) tape.reserve_grad(c, t);
      state.ResumeTiming();
      tape.backward(c);
      state.PauseTiming();
      for (const Tensor& t : inputs) {
        t.var->written = false;
        t.var->grad = {};
      }
      memory.set_high(0);
      state.ResumeTiming();
    }
    benchmark::DoNotOptimize(r.y.data);
    memory.set_low(low);
  }
  state.counters["ns_element"] = benchmark::Counter(
      static_cast<double>(B * L * H * P * N) * 1e-9,
      benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

BENCHMARK(mamba3_scan_bench)
    ->ArgNames({"B", "L", "H", "R", "mode", "bf16"})
    ->Args({1, 512, 24, 1, kForward, 0})  // 180M
    ->Args({1, 512, 24, 1, kBackward, 0})
    ->Args({1, 512, 24, 1, kBackward, 1})
    ->Args({1, 512, 24, 4, kForward, 0})
    ->Args({1, 512, 24, 4, kBackward, 0})
    ->Args({1, 1, 24, 1, kForward, 0})  // decoding
    ->Args({1, 1, 24, 4, kForward, 0})
    ->Args({16, 1, 64, 4, kForward, 0})  // 1.5B, 16 streams
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace krait::ops
