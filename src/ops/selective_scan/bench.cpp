// selective_scan at the shapes of published models. `ns_element`: processor time of one (t, e, n) on one
// core; the arithmetic bound of AVX-512 is near 14 vector operations a 16 elements forward.
#include <benchmark/benchmark.h>

#include "krait/autograd/tape.h"
#include "krait/base/rng.h"
#include "krait/base/threads.h"
#include "krait/ops/selective_scan/selective_scan.h"

namespace krait::ops {
namespace {

enum Mode : int64_t { kForward, kRecorded, kBackward };

// Arguments: B, L, E, N, mode, bfloat16 activations.
void selective_scan_bench(benchmark::State& state) {
  const int64_t B = state.range(0), L = state.range(1), E = state.range(2), N = state.range(3);
  const int64_t mode = state.range(4);
  const DType dtype = state.range(5) ? DType::bf16 : DType::f32;
  set_threads(1);
  Arena memory(size_t{4} << 30);
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
  ScanInputs in;
  in.u = random({B, L, E}, dtype, 0, 1);
  in.dt = random({B, L, E}, dtype, 0, 0.5);
  in.A = random({E, N}, DType::f32, 1, 1);
  in.B = random({B, L, N}, DType::f32, 0, 1);
  in.C = random({B, L, N}, DType::f32, 0, 1);
  in.D = random({E}, DType::f32, 1, 0.1);
  in.z = random({B, L, E}, dtype, 0, 1);
  in.dt_bias = random({E}, DType::f32, -4, 1);
  in.a_is_log = true;
  const Tensor from = random({B, E, N}, DType::f32, 0, 1), to = c.alloc({B, E, N}, DType::f32);
  const size_t low = memory.low();
  double saved = 0;
  for (auto _ : state) {
    if (mode == kBackward) state.PauseTiming();
    const ScanResult r = selective_scan(c, in, nullptr, from, to);
    saved = static_cast<double>(memory.low() - low) - static_cast<double>(r.y.bytes());
    if (mode == kBackward) {
      tape.seed(c, r.y);
      for (const Tensor& t : {in.u, in.dt, in.z}) tape.reserve_grad(c, t);
      state.ResumeTiming();
      tape.backward(c);
    }
    benchmark::DoNotOptimize(r.y.data);
    if (c.tape) {
      // Forget the nodes, keep the variables of the inputs: their gradients are then overwritten.
      state.PauseTiming();
      c.tape->backward(c, c.tape->size());
      for (const Tensor& t : {in.u, in.dt, in.A, in.B, in.C, in.D, in.z, in.dt_bias, from})
        t.var->written = false;
      for (const Tensor& t : {in.u, in.dt, in.A, in.B, in.C, in.D, in.z, in.dt_bias, from})
        t.var->grad = {};
      memory.set_high(0);
      state.ResumeTiming();
    }
    memory.set_low(low);
  }
  const auto elements = static_cast<double>(B * L * E * N);
  state.counters["ns_element"] = benchmark::Counter(
      elements * 1e-9, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
  state.counters["saved_bytes_per_token_channel"] = saved / static_cast<double>(B * L * E);
}

BENCHMARK(selective_scan_bench)
    ->ArgNames({"B", "L", "E", "N", "mode", "bf16"})
    ->Args({1, 2048, 1536, 16, kForward, 0})  // mamba-130m
    ->Args({1, 2048, 1536, 16, kRecorded, 0})
    ->Args({1, 2048, 1536, 16, kBackward, 0})
    ->Args({1, 2048, 1536, 16, kForward, 1})
    ->Args({1, 2048, 1536, 16, kBackward, 1})
    ->Args({8, 512, 512, 16, kForward, 0})
    ->Args({1, 1, 1536, 16, kForward, 0})  // decoding
    ->Args({1, 8, 1536, 16, kForward, 0})
    ->Args({16, 1, 5120, 16, kForward, 0})  // mamba-2.8b, 16 streams
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace krait::ops
