// adamw and clip_grad_norm over the tensors of a model like mamba-130m: GB/s of memory moved.
#include <benchmark/benchmark.h>

#include <vector>

#include "krait/ops/adamw/adamw.h"

namespace krait::ops {
namespace {

struct Model {
  Model() : arena(size_t{1200} << 20) {
    c.arena = &arena;
    const auto take = [&](int64_t n) {
      const Tensor t = c.alloc({n}, DType::f32);
      std::fill_n(t.as<float>(), n, 0.01f);
      elements += n;
      return t;
    };
    const auto add = [&](int64_t n) {
      AdamwTensors a;
      a.value = take(n), a.grad = take(n), a.m = take(n), a.v = take(n);
      tensors.push_back(a);
      grads.push_back(a.grad);
    };
    for (int layer = 0; layer < 8; ++layer)
      for (int64_t n : {768, 3072 * 768, 1536 * 4, 1536, 80 * 1536, 1536 * 48, 1536, 1536 * 16,
                        1536, 768 * 1536})
        add(n);
    add(50280 * 768);
    elements /= 4;
    scalars = c.alloc({kStepScalars}, DType::f32);
    std::fill_n(scalars.as<float>(), static_cast<int>(kStepScalars), 0.5f);
  }
  Arena arena;
  Context c;
  std::vector<AdamwTensors> tensors;
  std::vector<Tensor> grads;
  Tensor scalars;
  int64_t elements = 0;
};

void step(benchmark::State& state) {
  Model q;
  for (auto _ : state) adamw(q.c, q.tensors, {}, q.scalars);
  state.counters["GB/s"] = benchmark::Counter(28e-9 * static_cast<double>(q.elements),
                                              benchmark::Counter::kIsIterationInvariantRate);
}

void clip(benchmark::State& state) {
  Model q;
  for (auto _ : state) clip_grad_norm(q.c, q.grads, 1.0f, q.scalars);
  state.counters["GB/s"] = benchmark::Counter(4e-9 * static_cast<double>(q.elements),
                                              benchmark::Counter::kIsIterationInvariantRate);
}

BENCHMARK(step)->Name("adamw")->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(clip)->Name("clip_grad_norm")->UseRealTime()->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace krait::ops
