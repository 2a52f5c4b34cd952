// Forward and backward: FLOPs by the op's own count (causal pairs only); judge them against BM_Product, one
// matrix product. Steps: bytes of the keys and values that are read; judge them against the memory.
#include <benchmark/benchmark.h>

#include "krait/autograd/tape.h"
#include "krait/ops/attention/attention.h"
#include "krait/tensor/cpu/matmul.h"
#include "krait/tensor/memory.h"

namespace krait::ops {
namespace {

struct Bench {
  Arena arena{size_t{1} << 30};
  Tape tape;
  std::map<std::string, Cost> costs;
  Context c;
  Tensor qkv;
  int64_t H, Hkv;

  Bench(int64_t B, int64_t L, int64_t heads, int64_t key_heads, int64_t P, DType dtype, bool record)
      : H(heads), Hkv(key_heads) {
    c.arena = &arena;
    c.costs = &costs;
    qkv = c.alloc({B, L, H + 2 * Hkv, P}, dtype);
    fill(c, qkv, 0.3f);
    if (record) {
      c.tape = &tape;
      tape.watch(qkv);
    }
  }
  Tensor run(const KeyCache& cache = {}) {
    return attention(c,
                     {qkv.slice(2, 0, H), qkv.slice(2, H, H + Hkv),
                      qkv.slice(2, H + Hkv, H + 2 * Hkv), 0.1f},
                     nullptr, cache, cache)
        .y;
  }
};

void flops(benchmark::State& state, double all) {
  state.counters["FLOPS"] = benchmark::Counter(all, benchmark::Counter::kIsRate);
}

void BM_Product(benchmark::State& state) {
  constexpr int64_t kN = 1024;
  Arena arena(size_t{64} << 20);
  Context c;
  c.arena = &arena;
  const Tensor a = c.alloc({kN, kN}, DType::f32), b = c.alloc({kN, kN}, DType::f32),
               y = c.alloc({kN, kN}, DType::f32);
  for (const Tensor& t : {a, b}) fill(c, t, 0.3f);
  for (auto _ : state) cpu::matmul(cpu::matrix(a), cpu::matrix(b), cpu::matrix(y));
  flops(state, static_cast<double>(state.iterations()) * 2.0 * kN * kN * kN);
}

void BM_AttentionForward(benchmark::State& state) {
  Bench b(1, state.range(0), state.range(1), state.range(2), state.range(3),
          static_cast<DType>(state.range(4)), false);
  const size_t mark = b.arena.low();
  for (auto _ : state) {
    b.run();
    b.arena.set_low(mark);
  }
  flops(state, b.costs["attention"].flops);
}

void BM_AttentionBackward(benchmark::State& state) {
  Bench b(1, state.range(0), state.range(1), state.range(2), state.range(3),
          static_cast<DType>(state.range(4)), true);
  b.tape.reserve_grad(b.c, b.qkv);
  const size_t low = b.arena.low(), high = b.arena.high();
  for (auto _ : state) {
    state.PauseTiming();
    b.arena.set_low(low);
    b.arena.set_high(high);
    b.tape.seed(b.c, b.run());
    state.ResumeTiming();
    b.tape.backward(b.c);
  }
  flops(state, b.costs["attention.backward"].flops);
}

// One token of B sequences behind `context` cached ones. The length is put back for each.
void BM_AttentionStep(benchmark::State& state) {
  const int64_t B = state.range(0), context = state.range(1), H = state.range(2),
                Hkv = state.range(3), P = state.range(4);
  Bench b(B, 1, H, Hkv, P, DType::f32, false);
  const KeyCache cache = {b.c.alloc({B, context + 1, Hkv * P}, DType::f32),
                          b.c.alloc({B, context + 1, Hkv * P}, DType::f32),
                          b.c.alloc({B, 1}, DType::f32)};
  for (const Tensor& t : {cache.k, cache.v}) fill(b.c, t, 0.1f);
  const size_t mark = b.arena.low();
  for (auto _ : state) {
    fill(b.c, cache.length, static_cast<float>(context));
    b.run(cache);
    b.arena.set_low(mark);
  }
  state.SetBytesProcessed(state.iterations() * B * context * Hkv * P * 8);
}

constexpr int64_t kF32 = static_cast<int64_t>(DType::f32),
                  kBf16 = static_cast<int64_t>(DType::bf16);
BENCHMARK(BM_Product)->UseRealTime();
BENCHMARK(BM_AttentionForward)
    ->Args({2048, 12, 12, 64, kF32})
    ->Args({2048, 12, 12, 64, kBf16})
    ->Args({2048, 32, 8, 128, kF32})
    ->UseRealTime();
BENCHMARK(BM_AttentionBackward)
    ->Args({2048, 12, 12, 64, kF32})
    ->Args({2048, 12, 12, 64, kBf16})
    ->UseRealTime();
BENCHMARK(BM_AttentionStep)
    ->Args({1, 2048, 12, 12, 64})
    ->Args({1, 2048, 32, 8, 128})
    ->Args({8, 2048, 12, 12, 64})
    ->UseRealTime();

}  // namespace
}  // namespace krait::ops
