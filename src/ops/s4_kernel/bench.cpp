// Kernels of the published sizes: CIFAR (H 512, N 32, L 1024) and Path-X (H 256, N 32, L 16384).
#include <benchmark/benchmark.h>

#include "krait/autograd/tape.h"
#include "krait/ops/s4_kernel/s4_kernel.h"
#include "krait/tensor/memory.h"

namespace krait::ops {
namespace {

void BM_S4Kernel(benchmark::State& state) {
  const int64_t H = state.range(0), L = state.range(1), N = 32;
  const bool dplr = state.range(2) == 1, backward = state.range(3) == 1;
  Arena arena(size_t{512} << 20);
  Tape tape;
  Context c;
  c.arena = &arena;
  S4Params p;
  const auto take = [&](const Shape& s, float value) {
    Tensor t = c.alloc(s, DType::f32);
    fill(c, t, value);
    if (backward) tape.watch(t);
    return t;
  };
  p.inv_dt = take({H}, -4);
  p.A_real = take({1, N}, -0.7f);
  p.A_imag = take({1, N}, 3);
  p.B = take({1, 1, N, 2}, 1);
  p.C = take({1, H, N, 2}, 1);
  if (dplr) p.P = take({1, 1, N, 2}, 0.5f);
  const S4Options o{.length = L};
  const size_t low = arena.low();
  if (backward) c.tape = &tape;
  for (auto _ : state) {
    arena.set_low(low);
    arena.set_high(0);
    const Tensor K = s4_kernel(c, p, o, L);
    if (!backward) continue;
    tape.seed(c, K);
    tape.backward(c);
    for (const Tensor& t : {p.inv_dt, p.A_real, p.A_imag, p.B, p.C, p.P})
      if (t) *t.var = Var{.whole = t.var->whole};
  }
  state.SetItemsProcessed(state.iterations() * H * L);
}

BENCHMARK(BM_S4Kernel)->ArgsProduct({{512}, {1024}, {0, 1}, {0, 1}})->UseRealTime();
BENCHMARK(BM_S4Kernel)->ArgsProduct({{256}, {16384}, {0, 1}, {0, 1}})->UseRealTime();

}  // namespace
}  // namespace krait::ops
