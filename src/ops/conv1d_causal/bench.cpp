// Bytes are those of the op's own cost: each tensor once. Judge them against BM_ReadAndWrite, the same
// traffic without arithmetic.
#include <benchmark/benchmark.h>

#include <cstring>

#include "krait/autograd/tape.h"
#include "krait/base/threads.h"
#include "krait/ops/conv1d_causal/conv1d_causal.h"
#include "krait/tensor/memory.h"

namespace krait::ops {
namespace {

constexpr int64_t kE = 1536, kW = 4;  // Mamba-130m

// One memory-bound copy with the rows of x in its place: half of rows of 2E.
void BM_ReadAndWrite(benchmark::State& state) {
  const int64_t L = state.range(0);
  Arena arena(static_cast<size_t>(L * kE) * 3 * sizeof(float));
  auto* from = static_cast<float*>(arena.take_low(static_cast<size_t>(L * 2 * kE) * sizeof(float)));
  auto* to = static_cast<float*>(arena.take_low(static_cast<size_t>(L * kE) * sizeof(float)));
  std::memset(from, 0, static_cast<size_t>(L * 2 * kE) * sizeof(float));
  for (auto _ : state) {
    parallel_ranges(L, 64, [&](int64_t t, int64_t end) {
      for (; t < end; ++t) std::memcpy(to + t * kE, from + t * 2 * kE, kE * sizeof(float));
    });
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * L * kE * 8);
}
BENCHMARK(BM_ReadAndWrite)->Arg(2048)->UseRealTime();

struct Bench {
  Arena arena{size_t{256} << 20};
  Tape tape;
  std::map<std::string, Cost> costs;
  Context c;
  Tensor xz, x, k, bias, states;

  Bench(int64_t B, int64_t L, DType dtype, bool record) {
    c.arena = &arena;
    c.costs = &costs;
    xz = c.alloc({B, L, 2 * kE}, dtype);
    k = c.alloc({kE, kW}, DType::f32);
    bias = c.alloc({kE}, DType::f32);
    states = c.alloc({B, kE, kW}, DType::f32);
    for (const Tensor& t : {xz, k, bias, states}) fill(c, t, 0.3f);
    if (record) {
      c.tape = &tape;
      for (Tensor* t : {&xz, &k, &bias}) tape.watch(*t);
    }
    x = xz.slice(-1, 0, kE);
  }
};

void BM_ConvForward(benchmark::State& state) {
  Bench b(1, state.range(0), static_cast<DType>(state.range(1)), false);
  const size_t mark = b.arena.low();
  for (auto _ : state) {
    conv1d_causal(b.c, b.x, b.k, b.bias, true);
    b.arena.set_low(mark);
  }
  state.SetBytesProcessed(static_cast<int64_t>(b.costs["conv1d_causal"].bytes));
}

void BM_ConvBackward(benchmark::State& state) {
  Bench b(1, state.range(0), static_cast<DType>(state.range(1)), true);
  for (Tensor* t : {&b.xz, &b.k, &b.bias})
    b.tape.grad_into(b.c, *t);  // what another op has written
  const size_t low = b.arena.low(), high = b.arena.high();
  for (auto _ : state) {
    state.PauseTiming();
    b.arena.set_low(low);
    b.arena.set_high(high);
    b.tape.seed(b.c, conv1d_causal(b.c, b.x, b.k, b.bias, true).y);
    state.ResumeTiming();
    b.tape.backward(b.c);
  }
  state.SetBytesProcessed(static_cast<int64_t>(b.costs["conv1d_causal.backward"].bytes));
}

// One token of B sequences, states in place.
void BM_ConvStep(benchmark::State& state) {
  Bench b(state.range(0), 1, DType::f32, false);
  const size_t mark = b.arena.low();
  for (auto _ : state) {
    conv1d_causal(b.c, b.x, b.k, b.bias, true, nullptr, b.states, b.states);
    b.arena.set_low(mark);
  }
  state.SetBytesProcessed(static_cast<int64_t>(b.costs["conv1d_causal"].bytes) +
                          state.iterations() * state.range(0) * kE * kW * 8);
}

constexpr int64_t kF32 = static_cast<int64_t>(DType::f32),
                  kBf16 = static_cast<int64_t>(DType::bf16);
BENCHMARK(BM_ConvForward)->Args({2048, kF32})->Args({2048, kBf16})->UseRealTime();
BENCHMARK(BM_ConvBackward)->Args({2048, kF32})->Args({2048, kBf16})->UseRealTime();
BENCHMARK(BM_ConvStep)->Arg(1)->Arg(8)->Arg(64)->UseRealTime();

}  // namespace
}  // namespace krait::ops
