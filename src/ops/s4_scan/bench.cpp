#include <benchmark/benchmark.h>

#include "krait/ops/s4_scan/s4_scan.h"
#include "krait/tensor/memory.h"

namespace krait::ops {
namespace {

// H 512, N 32: one token of B sequences, states in place, or B 1 and L tokens.
void BM_S4Scan(benchmark::State& state) {
  const int64_t B = state.range(0), L = state.range(1), H = 512, N = 32;
  Arena arena(size_t{64} << 20);
  Context c;
  c.arena = &arena;
  const auto take = [&](const Shape& s, float value) {
    const Tensor t = c.alloc(s, DType::f32);
    fill(c, t, value);
    return t;
  };
  S4Params p;
  p.inv_dt = take({H}, -4);
  p.A_real = take({1, N}, -0.7f);
  p.A_imag = take({1, N}, 3);
  p.B = take({1, 1, N, 2}, 1);
  p.C = take({1, H, N, 2}, 1);
  if (state.range(2) == 1) p.P = take({1, 1, N, 2}, 0.5f);
  const S4Steps steps = s4_steps(p, {});
  const Tensor u = take({B, L, H}, 0.3f), D = take({1, H}, 1), h = take({B, H, N, 2}, 0);
  const size_t low = arena.low();
  for (auto _ : state) {
    arena.set_low(low);
    s4_scan(c, u, &steps, D, nullptr, h, h);
  }
  state.SetItemsProcessed(state.iterations() * B * L);
}
BENCHMARK(BM_S4Scan)->ArgsProduct({{1, 16}, {1}, {0, 1}})->UseRealTime();
BENCHMARK(BM_S4Scan)->ArgsProduct({{1}, {256}, {0, 1}})->UseRealTime();

}  // namespace
}  // namespace krait::ops
