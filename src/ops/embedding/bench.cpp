// The scatter of the gradient into a table that a tied head has filled already.
#include <benchmark/benchmark.h>

#include "krait/autograd/tape.h"
#include "krait/ops/embedding/embedding.h"
#include "krait/tensor/memory.h"

namespace krait::ops {
namespace {

constexpr int64_t kV = 50280, kD = 768;

void BM_EmbeddingBackward(benchmark::State& state) {
  Arena arena(size_t{512} << 20);
  Tape tape;
  Context c;
  c.arena = &arena;
  c.tape = &tape;
  const int64_t n = state.range(0);
  Tensor tokens = c.alloc({n}, DType::i32), w = c.alloc({kV, kD}, DType::f32);
  for (int64_t i = 0; i < n; ++i) tokens.as<int32_t>()[i] = static_cast<int32_t>(i * 7919 % kV);
  fill(c, w, 0.1f);
  tape.watch(w);
  fill(c, tape.grad_into(c, w).grad, 0.0f);
  const size_t low = arena.low(), high = arena.high();
  for (auto _ : state) {
    state.PauseTiming();
    arena.set_low(low);
    arena.set_high(high);
    tape.seed(c, embedding(c, tokens, w));
    state.ResumeTiming();
    tape.backward(c);
  }
  state.SetBytesProcessed(state.iterations() * n * kD * 12);
}
BENCHMARK(BM_EmbeddingBackward)->Arg(2048)->UseRealTime();

}  // namespace
}  // namespace krait::ops
