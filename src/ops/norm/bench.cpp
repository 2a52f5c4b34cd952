// Bytes are those of the op's own cost: each tensor once. Judge them against BM_ReadAndWrite of
// conv1d_causal.
#include <benchmark/benchmark.h>

#include "krait/autograd/tape.h"
#include "krait/ops/norm/norm.h"
#include "krait/tensor/memory.h"

namespace krait::ops {
namespace {

struct Bench {
  Arena arena{size_t{256} << 20};
  Tape tape;
  std::map<std::string, Cost> costs;
  Context c;
  Tensor x, residual, w;

  Bench(int64_t rows, int64_t D, DType dtype, bool record) {
    c.arena = &arena;
    c.costs = &costs;
    x = c.alloc({rows, D}, dtype);
    residual = c.alloc({rows, D}, DType::f32);
    w = c.alloc({D}, DType::f32);
    for (const Tensor& t : {x, residual, w}) fill(c, t, 0.3f);
    if (record) {
      c.tape = &tape;
      for (Tensor* t : {&x, &residual, &w}) tape.watch(*t);
    }
  }
};

void BM_NormForward(benchmark::State& state) {
  const auto dtype = static_cast<DType>(state.range(2));
  Bench b(state.range(0), state.range(1), dtype, false);
  const size_t mark = b.arena.low();
  for (auto _ : state) {
    norm(b.c, NormKind::rms, b.x, b.w, {}, 1e-5f, dtype, b.residual);
    b.arena.set_low(mark);
  }
  state.SetBytesProcessed(static_cast<int64_t>(b.costs["norm"].bytes));
}

void BM_NormBackward(benchmark::State& state) {
  const auto dtype = static_cast<DType>(state.range(2));
  Bench b(state.range(0), state.range(1), dtype, true);
  for (Tensor* t : {&b.x, &b.residual, &b.w}) b.tape.reserve_grad(b.c, *t);
  const size_t low = b.arena.low(), high = b.arena.high();
  for (auto _ : state) {
    state.PauseTiming();
    b.arena.set_low(low);
    b.arena.set_high(high);
    const NormResult r = norm(b.c, NormKind::rms, b.x, b.w, {}, 1e-5f, dtype, b.residual);
    b.tape.seed(b.c, r.y);
    b.tape.seed(b.c, r.sum);
    state.ResumeTiming();
    b.tape.backward(b.c);
  }
  state.SetBytesProcessed(static_cast<int64_t>(b.costs["norm.backward"].bytes));
}

constexpr int64_t kF32 = static_cast<int64_t>(DType::f32),
                  kBf16 = static_cast<int64_t>(DType::bf16);
BENCHMARK(BM_NormForward)
    ->Args({2048, 768, kF32})
    ->Args({2048, 768, kBf16})
    ->Args({1, 768, kF32})
    ->UseRealTime();
BENCHMARK(BM_NormBackward)->Args({2048, 768, kF32})->Args({2048, 768, kBf16})->UseRealTime();

}  // namespace
}  // namespace krait::ops
