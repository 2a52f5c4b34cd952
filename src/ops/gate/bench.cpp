// The MLP of a 130M Transformer++. Bytes are those of the op's own cost: each tensor once.
#include <benchmark/benchmark.h>

#include "krait/ops/gate/gate.h"
#include "krait/tensor/memory.h"

namespace krait::ops {
namespace {

void BM_Gate(benchmark::State& state) {
  constexpr int64_t kRows = 2048, kF = 2048;
  Arena arena(size_t{256} << 20);
  std::map<std::string, Cost> costs;
  Context c;
  c.arena = &arena;
  c.costs = &costs;
  const Tensor both = c.alloc({kRows, 2 * kF}, DType::f32);
  fill(c, both, 0.3f);
  const size_t mark = arena.low();
  for (auto _ : state) {
    gate(c, static_cast<Gate>(state.range(0)), both.slice(1, kF, 2 * kF), both.slice(1, 0, kF));
    arena.set_low(mark);
  }
  state.SetBytesProcessed(static_cast<int64_t>(costs["gate"].bytes));
}
BENCHMARK(BM_Gate)
    ->Arg(static_cast<int>(Gate::silu))
    ->Arg(static_cast<int>(Gate::gelu))
    ->UseRealTime();

}  // namespace
}  // namespace krait::ops
