// selective_scan at the shapes of published models. `ns_element`: processor time of one (t, e, n) on one
// core; the arithmetic bound of AVX-512 is near 14 vector operations a 16 elements forward.
#include "krait/ops/scan_bench.h"
#include "krait/ops/selective_scan/selective_scan.h"

namespace krait::ops {
namespace {

// Arguments: B, L, E, N, mode, bfloat16 activations.
void selective_scan_bench(benchmark::State& state) {
  const int64_t B = state.range(0), L = state.range(1), E = state.range(2), N = state.range(3);
  const DType dtype = state.range(5) ? DType::bf16 : DType::f32;
  ScanBench bench(state, state.range(4), size_t{4} << 30);
  ScanInputs in;
  in.u = bench.random({B, L, E}, dtype, 0, 1);
  in.dt = bench.random({B, L, E}, dtype, 0, 0.5);
  in.A = bench.random({E, N}, DType::f32, 1, 1);
  in.B = bench.random({B, L, N}, DType::f32, 0, 1);
  in.C = bench.random({B, L, N}, DType::f32, 0, 1);
  in.D = bench.random({E}, DType::f32, 1, 0.1);
  in.z = bench.random({B, L, E}, dtype, 0, 1);
  in.dt_bias = bench.random({E}, DType::f32, -4, 1);
  in.a_is_log = true;
  const Tensor from = bench.random({B, E, N}, DType::f32, 0, 1),
               to = bench.c.alloc({B, E, N}, DType::f32);
  bench.run([&] { return selective_scan(bench.c, in, nullptr, from, to).y; }, B * L * E * N);
  state.counters["saved_bytes_per_token_channel"] =
      static_cast<double>(bench.saved_bytes()) / static_cast<double>(B * L * E);
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
