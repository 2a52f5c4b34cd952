// What the benchmarks of scans share: random inputs on one core, then forward alone, forward with what backward needs, or
// backward alone.
#pragma once
#include <benchmark/benchmark.h>

#include <vector>

#include "krait/autograd/tape.h"
#include "krait/base/rng.h"
#include "krait/base/threads.h"

namespace krait::ops {

enum ScanMode : int64_t { kForward, kRecorded, kBackward };

class ScanBench {
 public:
  ScanBench(benchmark::State& state, int64_t mode, size_t bytes)
      : state_(state), mode_(mode), memory_(bytes) {
    set_threads(1);
    c.arena = &memory_;
    if (mode != kForward) c.tape = &tape_;
  }

  // mean + scale · normal. An input: a variable where there is a tape.
  Tensor random(const Shape& shape, DType type, double mean, double scale) {
    Tensor t = c.alloc(shape, type);
    if (c.tape) tape_.watch(t);
    const Philox rng{inputs_.size() + 1, 2};
    for (int64_t i = 0; i < t.numel(); ++i)
      set(t, i, mean + scale * rng.normal(static_cast<uint64_t>(i)));
    inputs_.push_back(t);
    return t;
  }

  // Times forward(), which returns y, or backward from ones in y. ns_element: nanoseconds for each of `elements`.
  template <class Forward>
  void run(const Forward& forward, int64_t elements) {
    const size_t low = memory_.low();
    for (auto _ : state_) {
      if (mode_ == kBackward) state_.PauseTiming();
      const Tensor y = forward();
      saved_ = memory_.low() - low - y.bytes();
      if (mode_ == kBackward) {
        tape_.seed(c, y);
        for (const Tensor& t : inputs_) tape_.reserve_grad(c, t);
        state_.ResumeTiming();
        tape_.backward(c);
      }
      benchmark::DoNotOptimize(y.data);
      if (c.tape) {
        state_.PauseTiming();
        forget();
        state_.ResumeTiming();
      }
      memory_.set_low(low);
    }
    state_.counters["ns_element"] = benchmark::Counter(
        static_cast<double>(elements) * 1e-9,
        benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
  }

  size_t saved_bytes() const { return saved_; }  // for backward, beside inputs and y

  Context c;

 private:
  // Drops the nodes but keeps the variables of the inputs: their gradients are then overwritten.
  void forget() {
    tape_.backward(c, tape_.size());
    for (const Tensor& t : inputs_) t.var->written = false, t.var->grad = {};
    memory_.set_high(0);
  }

  benchmark::State& state_;
  int64_t mode_;
  Arena memory_;
  Tape tape_;
  std::vector<Tensor> inputs_;
  size_t saved_ = 0;
};

}  // namespace krait::ops
