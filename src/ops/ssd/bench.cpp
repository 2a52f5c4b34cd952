// ssd at the shapes of published models. `ns_element`: processor time of one (t, h, p, n) on one core.
#include "krait/ops/scan_bench.h"
#include "krait/ops/ssd/ssd.h"

namespace krait::ops {
namespace {

// Arguments: B, L, H, P, N, mode, bfloat16 activations.
void ssd_bench(benchmark::State& state) {
  const int64_t B = state.range(0), L = state.range(1), H = state.range(2), P = state.range(3),
                N = state.range(4);
  const DType dtype = state.range(6) ? DType::bf16 : DType::f32;
  ScanBench bench(state, state.range(5), size_t{2} << 30);
  SsdInputs in;
  in.x = bench.random({B, L, H * P}, dtype, 0, 1);
  in.dt = bench.random({B, L, H}, dtype, 0, 0.5);
  in.A = bench.random({H}, DType::f32, 1, 1);
  in.B = bench.random({B, L, N}, dtype, 0, 1);
  in.C = bench.random({B, L, N}, dtype, 0, 1);
  in.D = bench.random({H}, DType::f32, 1, 0.1);
  in.dt_bias = bench.random({H}, DType::f32, -4, 1);
  in.a_is_log = true;
  const Tensor from = bench.random({B, H, P, N}, DType::f32, 0, 1),
               to = bench.c.alloc({B, H, P, N}, DType::f32);
  bench.run([&] { return ssd(bench.c, in, nullptr, from, to).y; }, B * L * H * P * N);
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
