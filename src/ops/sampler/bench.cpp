// sampler: time a step of 8 rows of 50,280 logits, beside about 12 ms of a decode step of mamba-130m.
#include <benchmark/benchmark.h>

#include <vector>

#include "krait/ops/sampler/sampler.h"

namespace krait::ops {
namespace {

void draw(benchmark::State& state, const SamplerOptions& o) {
  constexpr int64_t B = 8, V = 50280;
  std::vector<float> values(static_cast<size_t>(B * V));
  const Philox rng{1, 2};
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(3 * rng.normal(i));
  Arena arena(size_t{16} << 20);
  Context c;
  c.arena = &arena;
  std::vector<SampleRow> rows(B);
  for (auto _ : state) {
    for (SampleRow& r : rows) ++r.position;
    benchmark::DoNotOptimize(sample(c, Tensor(values.data(), DType::f32, {B, V}), V - 3, o, rows));
  }
}

void settings(benchmark::internal::Benchmark* b) {
  b->UseRealTime()->Unit(benchmark::kMicrosecond);
}

BENCHMARK_CAPTURE(draw, sampler_greedy, SamplerOptions{.temperature = 0})->Apply(settings);
BENCHMARK_CAPTURE(draw, sampler_plain, SamplerOptions{})->Apply(settings);
BENCHMARK_CAPTURE(draw, sampler_top_k, SamplerOptions{.top_k = 50})->Apply(settings);
BENCHMARK_CAPTURE(draw, sampler_top_p, SamplerOptions{.top_p = 0.9f})->Apply(settings);

}  // namespace
}  // namespace krait::ops
