// mamba3_scan at the shapes of the paper's models. `ns_element`: processor time of one (t, h, p, n) on one
// core, all ranks of it.
#include "krait/ops/mamba3_scan/mamba3_scan.h"
#include "krait/ops/scan_bench.h"

namespace krait::ops {
namespace {

// Arguments: B, L, H, R, mode, bfloat16 activations; P = 64, N = 128.
void mamba3_scan_bench(benchmark::State& state) {
  const int64_t B = state.range(0), L = state.range(1), H = state.range(2), R = state.range(3);
  const int64_t P = 64, N = 128, T = 32, mode = state.range(4);
  const DType dtype = state.range(5) ? DType::bf16 : DType::f32;
  ScanBench bench(state, mode, size_t{3} << 30);
  Mamba3Inputs in;
  in.x = bench.random({B, L, H * P}, dtype, 0, 1);
  in.z = bench.random({B, L, H * P}, dtype, 0, 1);
  in.B = bench.random({B, L, R, 1, N}, dtype, 0, 1);
  in.C = bench.random({B, L, R, 1, N}, dtype, 0, 1);
  in.B_bias = bench.random({H, R, N}, DType::f32, 1, 0.1);
  in.C_bias = bench.random({H, R, N}, DType::f32, 1, 0.1);
  in.dt = bench.random({B, L, H}, DType::f32, 0.05, 0.01);
  in.adt = bench.random({B, L, H}, DType::f32, -0.05, 0.01);
  in.trap = bench.random({B, L, H}, DType::f32, 0, 1);
  in.angle = bench.random({B, L, T}, DType::f32, 0, 1);
  in.D = bench.random({H}, DType::f32, 1, 0.1);
  if (R > 1) {
    in.mimo_x = bench.random({H, R, P}, DType::f32, 0.25, 0.1);
    in.mimo_z = bench.random({H, R, P}, DType::f32, 1, 0.1);
    in.mimo_o = bench.random({H, R, P}, DType::f32, 0.25, 0.1);
    in.halves = true;
  }
  Mamba3State from, to;
  if (mode == kForward) {
    from = {bench.random({B, H, T}, DType::f32, 3, 1), bench.random({B, H, P, N}, DType::f32, 0, 1),
            bench.random({B, R, H, N}, DType::f32, 0, 1),
            bench.random({B, H, P}, DType::f32, 0, 1)};
    to = {bench.c.alloc(from.angle.shape, DType::f32), bench.c.alloc(from.ssm.shape, DType::f32),
          bench.c.alloc(from.k.shape, DType::f32), bench.c.alloc(from.v.shape, DType::f32)};
  }
  bench.run([&] { return mamba3_scan(bench.c, in, nullptr, from, to).y; }, B * L * H * P * N);
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
