#include <benchmark/benchmark.h>

#include "krait/autograd/tape.h"
#include "krait/ops/long_conv/long_conv.h"
#include "krait/tensor/memory.h"

namespace krait::ops {
namespace {

// CIFAR (B 50, H 512, L 1024), cut to 8 sequences, and one sequence of Path-X (H 256, L 16384).
void BM_LongConv(benchmark::State& state) {
  const int64_t B = state.range(0), L = state.range(1), H = state.range(2);
  const bool backward = state.range(3) == 1;
  Arena arena(size_t{1} << 30);
  Tape tape;
  Context c;
  c.arena = &arena;
  Tensor u = c.alloc({B, L, H}, DType::f32), K = c.alloc({1, H, L}, DType::f32),
         D = c.alloc({1, H}, DType::f32);
  for (const Tensor& t : {u, K, D}) fill(c, t, 0.3f);
  const size_t low = arena.low();
  for (auto _ : state) {
    arena.set_low(low);
    arena.set_high(0);
    tape.reset();
    if (backward) {
      c.tape = &tape;
      for (Tensor* t : {&u, &K, &D}) tape.watch(*t);
    }
    const Tensor y = long_conv(c, u, K, D);
    if (!backward) continue;
    tape.seed(c, y);
    tape.backward(c);
  }
  state.SetItemsProcessed(state.iterations() * B * L);
}
BENCHMARK(BM_LongConv)
    ->Args({8, 1024, 512, 0})
    ->Args({8, 1024, 512, 1})
    ->Args({1, 16384, 256, 0})
    ->Args({1, 16384, 256, 1})
    ->UseRealTime();

}  // namespace
}  // namespace krait::ops
