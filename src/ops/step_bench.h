// What the benchmarks of a decoded token's step share.
#pragma once
#include <benchmark/benchmark.h>

#include <vector>

#include "krait/base/rng.h"
#include "krait/tensor/context.h"

namespace krait::ops {

// A layer's weights and its states.
template <class Weights>
struct StepLayer {
  Weights weights;
  Tensor conv, ssm;
};

// Memory for the layers, which rotate through more of it than caches hold, as those of a model do.
class StepBench {
 public:
  static constexpr int64_t kWidth = 768, kTaps = 4;

  // The benchmark's arguments: B, bfloat16.
  explicit StepBench(benchmark::State& state)
      : B(state.range(0)), type(state.range(1) ? DType::bf16 : DType::f32), state_(state) {
    c.arena = &memory_;
    c.activation = type;
  }

  Tensor random(const Shape& shape, DType t, double scale) {
    const Tensor x = c.alloc(shape, t);
    const Philox rng{1, ++stream_};
    for (int64_t i = 0; i < x.numel(); ++i) set(x, i, scale * rng.normal(static_cast<uint64_t>(i)));
    return x;
  }

  // make() gives a StepLayer, step(layer, x) takes one token of each of B sequences through it; `bytes` of a layer are
  // moved.
  template <class Make, class Step, class Bytes>
  void run(const Make& make, const Step& step, const Bytes& bytes) {
    constexpr int kLayers = 8;
    std::vector<decltype(make())> layers;
    for (int i = 0; i < kLayers; ++i) layers.push_back(make());
    const Tensor x = random({B, 1, kWidth}, DType::f32, 1);
    const size_t low = memory_.low();
    size_t at = 0;
    for (auto _ : state_) {
      benchmark::DoNotOptimize(step(layers[at++ % layers.size()], x).data);
      memory_.set_low(low);
    }
    state_.SetBytesProcessed(static_cast<int64_t>(bytes(layers[0])) * state_.iterations());
  }

  int64_t B;
  DType type;
  Context c;

 private:
  benchmark::State& state_;
  Arena memory_{size_t{1} << 30};
  uint64_t stream_ = 0;
};

}  // namespace krait::ops
