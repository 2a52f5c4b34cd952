#include <benchmark/benchmark.h>

#include "krait/ops/dropout/dropout.h"
#include "krait/tensor/memory.h"

namespace krait::ops {
namespace {

void BM_DropoutAdd(benchmark::State& state) {
  Arena arena(size_t{64} << 20);
  std::map<std::string, Cost> costs;
  Context c;
  c.arena = &arena;
  c.costs = &costs;
  c.training = true;
  const Tensor x = c.alloc({state.range(0), 768}, DType::f32),
               stream = c.alloc(x.shape, DType::f32);
  fill(c, x, 0.3f);
  fill(c, stream, 0.3f);
  const float p = static_cast<float>(state.range(1)) / 100;
  const size_t mark = arena.low();
  for (auto _ : state) {
    dropout_add(c, x, stream, p);
    arena.set_low(mark);
  }
  state.SetBytesProcessed(static_cast<int64_t>(costs["dropout_add"].bytes));
}
BENCHMARK(BM_DropoutAdd)->Args({2048, 0})->Args({2048, 10})->UseRealTime();

}  // namespace
}  // namespace krait::ops
