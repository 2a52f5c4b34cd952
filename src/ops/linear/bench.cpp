// linear at the shapes of mamba-130m (D 768, E 1536) and of a small model (D 256, E 512): GFLOP/s of the
// three products for many rows, GB/s of weights for few. Weights rotate through more memory than caches
// hold, as the layers of a model do. Rates are those of the fastest of all calls: the machine may be busy.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <vector>

#include "krait/autograd/tape.h"
#include "krait/ops/linear/linear.h"

namespace krait::ops {
namespace {

constexpr size_t kColdBytes = size_t{96} << 20;

// `count` tensors of small numbers, one after another in one block.
class Block {
 public:
  Block(const Shape& shape, DType type, size_t count) {
    const size_t each = static_cast<size_t>(shape.numel()) * size_of(type);
    memory_ = std::make_unique<std::byte[]>(each * count + 64);
    for (size_t i = 0; i < count; ++i) {
      tensors_.emplace_back(memory_.get() + i * each, type, shape);
      for (int64_t j = 0; j < shape.numel(); ++j) {
        const float v = static_cast<float>(j % 251 - 125);
        if (type == DType::bf16) {
          tensors_.back().as<bf16>()[j] = bf16(v);
        } else {
          tensors_.back().as<float>()[j] = v;
        }
      }
    }
  }
  const Tensor& next() { return tensors_[at_++ % tensors_.size()]; }

 private:
  std::unique_ptr<std::byte[]> memory_;
  std::vector<Tensor> tensors_;
  size_t at_ = 0;
};

enum What { kForward, kDx, kDw };

// Times each call of `work` and reports `amount` / the shortest time.
template <class Prepare, class Work>
void measure(benchmark::State& state, const char* unit, double amount, const Prepare& prepare,
             const Work& work) {
  double best = 1e30;
  for (auto _ : state) {
    prepare();
    const auto start = std::chrono::steady_clock::now();
    work();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    state.SetIterationTime(took.count());
    best = std::min(best, took.count());
  }
  state.counters[unit] = amount / best;
}

void many_rows(benchmark::State& state, What what, DType type) {
  const int64_t M = state.range(0), N = state.range(1), K = state.range(2);
  Arena arena(size_t{512} << 20);
  Tape tape;
  Context c;
  c.arena = &arena;
  Block xs({M, K}, type, 1), ws({N, K}, type, 1), dys({M, N}, type, 1), dws({N, K}, DType::f32, 1);
  Tensor x = xs.next(), w = ws.next();
  Var slot;
  const auto prepare = [&] {
    arena.reset();
    tape.reset();
    if (what == kForward) return;
    c.tape = &tape;
    if (what == kDx) tape.watch(x);
    if (what == kDw) {
      slot = {.whole = w.detach(), .grad = dws.next(), .written = true};  // an accumulated gradient
      w.var = &slot;
    }
    const Tensor y = linear(c, x, w, {}, type);
    y.var->grad = dys.next();
    y.var->written = true;
  };
  measure(state, "GFLOP/s", 2e-9 * static_cast<double>(M * N * K), prepare, [&] {
    if (what == kForward) {
      linear(c, x, w, {}, type);
    } else {
      tape.backward(c);
    }
  });
}

void few_rows(benchmark::State& state, DType type) {
  const int64_t M = state.range(0), N = state.range(1), K = state.range(2);
  Arena arena(size_t{64} << 20);
  Context c;
  c.arena = &arena;
  const size_t bytes = static_cast<size_t>(N * K) * size_of(type);
  Block xs({M, K}, type, 1), ws({N, K}, type, kColdBytes / bytes + 1);
  Tensor w;
  const auto prepare = [&] {
    arena.reset();
    w = ws.next();
  };
  measure(state, "GB/s", 1e-9 * static_cast<double>(bytes), prepare,
          [&] { linear(c, xs.next(), w, {}, DType::f32); });
}

void settings(benchmark::internal::Benchmark* b) {
  b->UseManualTime()->Unit(benchmark::kMicrosecond)->MinTime(0.1);
}

void training_shapes(benchmark::internal::Benchmark* b) {
  settings(b);
  b->ArgNames({"M", "N", "K"});
  b->Args({2048, 2048, 2048});  // the machine's peak
  for (auto [N, K] : {std::pair{3072, 768}, {80, 1536}, {1536, 48}, {768, 1536}})
    b->Args({512, N, K});
  for (auto [N, K] : {std::pair{1024, 256}, {48, 512}, {512, 16}, {256, 512}, {256, 256}})
    b->Args({4096, N, K});
}

void decode_shapes(benchmark::internal::Benchmark* b) {
  settings(b);
  b->ArgNames({"M", "N", "K"});
  for (int64_t M : {1, 2, 4, 8, 12, 16, 24, 32, 48})
    for (auto [N, K] : {std::pair{3072, 768}, {80, 1536}, {1536, 48}, {768, 1536}, {50280, 768}})
      b->Args({M, N, K});
}

BENCHMARK_CAPTURE(many_rows, linear_forward_f32, kForward, DType::f32)->Apply(training_shapes);
BENCHMARK_CAPTURE(many_rows, linear_dx_f32, kDx, DType::f32)->Apply(training_shapes);
BENCHMARK_CAPTURE(many_rows, linear_dw_f32, kDw, DType::f32)->Apply(training_shapes);
BENCHMARK_CAPTURE(many_rows, linear_forward_bf16, kForward, DType::bf16)->Apply(training_shapes);
BENCHMARK_CAPTURE(many_rows, linear_dx_bf16, kDx, DType::bf16)->Apply(training_shapes);
BENCHMARK_CAPTURE(many_rows, linear_dw_bf16, kDw, DType::bf16)->Apply(training_shapes);
BENCHMARK_CAPTURE(few_rows, linear_decode_f32, DType::f32)->Apply(decode_shapes);
BENCHMARK_CAPTURE(few_rows, linear_decode_bf16, DType::bf16)->Apply(decode_shapes);

}  // namespace
}  // namespace krait::ops
