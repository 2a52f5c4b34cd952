// linear_cross_entropy: GFLOP/s at the heads of mamba-130m and of a byte model.
#include <benchmark/benchmark.h>

#include <memory>

#include "krait/autograd/tape.h"
#include "krait/ops/cross_entropy/cross_entropy.h"

namespace krait::ops {
namespace {

void cross_entropy(benchmark::State& state, bool record) {
  const int64_t M = state.range(0), V = state.range(1), D = state.range(2);
  const auto h_data = std::make_unique<float[]>(static_cast<size_t>(M * D));
  const auto w_data = std::make_unique<float[]>(static_cast<size_t>(V * D));
  const auto dw_data = std::make_unique<float[]>(static_cast<size_t>(V * D));
  const auto ids = std::make_unique<int32_t[]>(static_cast<size_t>(M));
  const Tensor w(w_data.get(), DType::f32, {V, D}), dw(dw_data.get(), DType::f32, {V, D});
  const Tensor targets(ids.get(), DType::i32, {M});
  Arena arena(size_t{256} << 20);
  Tape tape;
  Context c;
  c.arena = &arena;
  for (auto _ : state) {
    arena.reset();
    tape.reset();
    Tensor h(h_data.get(), DType::f32, {M, D}), weight = w;
    Var slot{.whole = w, .grad = dw, .written = true};
    if (record) {
      c.tape = &tape;
      tape.watch(h);
      weight.var = &slot;
    }
    linear_cross_entropy(c, h, weight, targets, 1);
  }
  state.counters["GFLOP/s"] =
      benchmark::Counter(2e-9 * static_cast<double>(M * V * D) * (record ? 3 : 1),
                         benchmark::Counter::kIsIterationInvariantRate);
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"M", "V", "D"})->Args({512, 50280, 768})->Args({4096, 256, 256});
  b->UseRealTime()->Unit(benchmark::kMillisecond);
}

BENCHMARK_CAPTURE(cross_entropy, evaluation, false)->Apply(shapes);
BENCHMARK_CAPTURE(cross_entropy, training, true)->Apply(shapes);

}  // namespace
}  // namespace krait::ops
