// ssd at the shapes of published models. `ns_element`: processor time of one (t, h, p, n) on one core.
#include <benchmark/benchmark.h>

#include "krait/autograd/tape.h"
#include "krait/base/rng.h"
#include "krait/base/threads.h"
#include "krait/ops/ssd/ssd.h"

namespace krait::ops {
namespace {

enum Mode : int64_t { kForward, kRecorded, kBackward };

// Arguments: B, L, H, P, N, mode, bfloat16 activations.
void ssd_bench(benchmark::State& state) {
  const int64_t B = state.range(0), L = state.range(1), H = state.range(2), P = state.range(3),
                N = state.range(4), mode = state.range(5);
  const DType dtype = state.range(6) ? DType::bf16 : DType::f32;
  set_threads(1);
  Arena memory(size_t{2} << 30);
  Tape tape;
  Context c;
  c.arena = &memory;
  if (mode != kForward) c.tape = &tape;
  const Philox rng{1, 2};
  const auto random = [&](const Shape& shape, DType type, double mean, double scale) {
    Tensor t = c.alloc(shape, type);
    if (c.tape) tape.watch(t);
    for (int64_t i = 0; i < t.numel(); ++i)
      set(t, i, mean + scale * rng.normal(static_cast<uint64_t>(i)));
    return t;
  };
  SsdInputs in;
  in.x = random({B, L, H * P}, dtype, 0, 1);
  in.dt = random({B, L, H}, dtype, 0, 0.5);
  in.A = random({H}, DType::f32, 1, 1);
  in.B = random({B, L, N}, dtype, 0, 1);
  in.C = random({B, L, N}, dtype, 0, 1);
  in.D = random({H}, DType::f32, 1, 0.1);
  in.dt_bias = random({H}, DType::f32, -4, 1);
  in.a_is_log = true;
  const Tensor from = random({B, H, P, N}, DType::f32, 0, 1),
               to = c.alloc({B, H, P, N}, DType::f32);
  const Tensor inputs[] = {in.x, in.dt, in.A, in.B, in.C, in.D, in.dt_bias, from};
  const size_t low = memory.low();
  for (auto _ : state) {
    if (mode == kBackward) state.PauseTiming();
    const SsdResult r = ssd(c, in, nullptr, from, to);
    if (mode == kBackward) {
      tape.seed(c, r.y);
      for (const Tensor& t : inputs) tape.reserve_grad(c, t);
      state.ResumeTiming();
      tape.backward(c);
    }
    benchmark::DoNotOptimize(r.y.data);
    if (c.tape) {
      // Forget the nodes, keep the variables of the inputs: their gradients are then overwritten.
      state.PauseTiming();
      tape.backward(c, tape.size());
      for (const Tensor& t : inputs) t.var->written = false, t.var->grad = {};
      memory.set_high(0);
      state.ResumeTiming();
    }
    memory.set_low(low);
  }
  state.counters["ns_element"] = benchmark::Counter(
      static_cast<double>(B * L * H * P * N) * 1e-9,
      benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

BENCHMARK(ssd_bench)
    ->ArgNames({"B", "L", "H", "P", "N", "mode", "bf16"})
    ->Args({1, 2048, 24, 64, 128, kForward, 0})  // mamba2-130m
    ->Args({1, 2048, 24, 64, 128, kRecorded, 0})
    ->Args({1, 2048, 24, 64, 128, kBackward, 0})
    ->Args({1, 2048, 24, 64, 128, kForward, 1})
    ->Args({1, 2048, 24, 64, 128, kRecorded, 1})
    ->Args({1, 2048, 24, 64, 128, kBackward, 1})
    ->Args({1, 1, 24, 64, 128, kForward, 0})  // decoding
    ->Args({1, 8, 24, 64, 128, kForward, 0})
    ->Args({16, 1, 80, 64, 128, kForward, 0})  // mamba2-2.7b, 16 streams
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace krait::ops
