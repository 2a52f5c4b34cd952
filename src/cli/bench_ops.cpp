// krait bench op: single ops on the sizes of a model.
#include <chrono>
#include <map>

#include "krait/autograd/plan.h"
#include "krait/base/rng.h"
#include "krait/cli/bench_tools.h"
#include "krait/ops/adamw/adamw.h"
#include "krait/ops/conv1d_causal/conv1d_causal.h"
#include "krait/ops/cross_entropy/cross_entropy.h"
#include "krait/ops/embedding/embedding.h"
#include "krait/ops/linear/linear.h"
#include "krait/ops/norm/norm.h"
#include "krait/ops/selective_scan/selective_scan.h"

namespace krait::cli {

namespace {

struct Input {
  Shape shape;
  DType dtype;
  double scale = 1, mean = 0;
};

// An op on inputs in the order given; `differentiable` ones get gradients.
struct OpCase {
  std::vector<Input> inputs;
  std::function<Tensor(Context&, const std::vector<Tensor>&)> run;
  bool backward = true;
};

OpCase linear_case(const OpSizes& s) {
  return {{{{s.B, s.L, s.D}, s.dtype}, {{2 * s.E, s.D}, s.dtype, 0.03}},
          [dtype = s.dtype](Context& c, const std::vector<Tensor>& in) {
            return ops::linear(c, in[0], in[1], {}, dtype);
          }};
}

OpCase norm_case(const OpSizes& s) {
  return {{{{s.B, s.L, s.D}, DType::f32}, {{s.D}, DType::f32, 0.1, 1}},
          [dtype = s.dtype](Context& c, const std::vector<Tensor>& in) {
            return ops::norm(c, ops::NormKind::rms, in[0], in[1], {}, 1e-5f, dtype).y;
          }};
}

OpCase conv_case(const OpSizes& s) {
  return {{{{s.B, s.L, s.E}, s.dtype}, {{s.E, s.W}, DType::f32, 0.5}, {{s.E}, DType::f32, 0.5}},
          [](Context& c, const std::vector<Tensor>& in) {
            return ops::conv1d_causal(c, in[0], in[1], in[2], true).y;
          }};
}

OpCase scan_case(const OpSizes& s) {
  return {{{{s.B, s.L, s.E}, s.dtype},
           {{s.B, s.L, s.E}, s.dtype, 0.5, -3},
           {{s.E, s.N}, DType::f32, 0.5, 1},
           {{s.B, s.L, s.N}, DType::f32},
           {{s.B, s.L, s.N}, DType::f32},
           {{s.E}, DType::f32},
           {{s.B, s.L, s.E}, s.dtype},
           {{s.E}, DType::f32, 0.5}},
          [](Context& c, const std::vector<Tensor>& in) {
            ops::ScanInputs x;
            x.u = in[0];
            x.dt = in[1];
            x.A = in[2];
            x.a_is_log = true;
            x.B = in[3];
            x.C = in[4];
            x.D = in[5];
            x.z = in[6];
            x.dt_bias = in[7];
            return ops::selective_scan(c, x).y;
          }};
}

OpCase embedding_case(const OpSizes& s) {
  return {
      {{{s.B, s.L}, DType::i32}, {{s.V, s.D}, s.dtype, 0.02}},
      [](Context& c, const std::vector<Tensor>& in) { return ops::embedding(c, in[0], in[1]); }};
}

OpCase cross_entropy_case(const OpSizes& s) {
  return {{{{s.B, s.L}, DType::i32}, {{s.B, s.L, s.D}, s.dtype}, {{s.V, s.D}, s.dtype, 0.03}},
          [](Context& c, const std::vector<Tensor>& in) {
            return ops::linear_cross_entropy(c, in[1], in[2], in[0], 1.0f).loss;
          },
          /*backward=*/false};
}

OpCase adamw_case(const OpSizes& s) {
  const Shape matrix = {s.V, s.D};
  return {{{matrix, DType::f32},
           {matrix, DType::f32},
           {matrix, DType::f32},
           {matrix, DType::f32, 0.1, 1},
           {{ops::kStepScalars}, DType::f32, 0.01, 0.5}},
          [](Context& c, const std::vector<Tensor>& in) {
            ops::AdamwTensors t;
            t.value = in[0];
            t.grad = in[1];
            t.m = in[2];
            t.v = in[3];
            t.decay = 0.1f;
            ops::adamw(c, {t}, {}, in[4]);
            return in[0];
          },
          /*backward=*/false};
}

using MakeCase = OpCase (*)(const OpSizes&);
const std::map<std::string, MakeCase>& all_cases() {
  static const std::map<std::string, MakeCase> cases = {
      {"linear", linear_case},       {"norm", norm_case},
      {"conv1d_causal", conv_case},  {"selective_scan", scan_case},
      {"embedding", embedding_case}, {"cross_entropy", cross_entropy_case},
      {"adamw", adamw_case}};
  return cases;
}

// Random inputs in memory of their own.
std::vector<Tensor> make_inputs(const std::vector<Input>& inputs, Arena& memory, int64_t vocab) {
  std::vector<Tensor> tensors;
  uint64_t stream = 0;
  for (const Input& in : inputs) {
    const Tensor t(memory.take_low(static_cast<size_t>(in.shape.numel()) * size_of(in.dtype)),
                   in.dtype, in.shape);
    const Philox rng{1, ++stream};
    for (int64_t i = 0; i < t.numel(); ++i) {
      const auto k = static_cast<uint64_t>(i);
      set(t, i,
          in.dtype == DType::i32
              ? static_cast<double>(rng.words(k)[0] % static_cast<uint64_t>(vocab))
              : in.mean + in.scale * rng.uniform(k));
    }
    tensors.push_back(t);
  }
  return tensors;
}

Cost sum(const std::map<std::string, Cost>& costs) {
  Cost total;
  for (const auto& [name, cost] : costs) {
    total.bytes += cost.bytes;
    total.flops += cost.flops;
  }
  return total;
}

}  // namespace

const std::vector<std::string>& bench_op_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> v;
    for (const auto& [name, make] : all_cases()) v.push_back(name);
    return v;
  }();
  return names;
}

void bench_op(const std::string& name, const OpSizes& s, int64_t repeat, const Common& common) {
  using Clock = std::chrono::steady_clock;
  const OpCase op = all_cases().at(name)(s);
  size_t bytes = 0;
  for (const Input& in : op.inputs)
    bytes += static_cast<size_t>(in.shape.numel()) * size_of(in.dtype) + Arena::kAlign;
  Arena memory(bytes);
  std::vector<Tensor> inputs = make_inputs(op.inputs, memory, s.V);

  for (const bool record : {false, true}) {
    if (record && !op.backward) break;
    Cost cost;
    double backward_s = 0;
    const auto work = [&](Context& c) {
      for (Tensor& t : inputs) {
        t.var = nullptr;
        if (c.tape && t.dtype != DType::i32) c.tape->watch(t);
      }
      const Tensor y = op.run(c, inputs);
      if (c.tape) {
        if (c.costs) c.costs->clear();
        c.tape->seed(c, y);
        const auto start = Clock::now();
        c.tape->backward(c);
        backward_s = std::chrono::duration<double>(Clock::now() - start).count();
      }
      if (c.costs) cost = sum(*c.costs);
    };
    Context c;
    Arena none(0);
    c.arena = &none;
    c.activation = s.dtype;
    Arena arena(plan(c, record, work).bytes);
    Tape tape;
    c.arena = &arena;
    c.tape = record ? &tape : nullptr;
    std::vector<double> backward_times;
    BenchResult r;
    r.seconds = time_runs(repeat, [&] {
      tape.reset();
      arena.reset();
      work(c);
      backward_times.push_back(backward_s);
    });
    if (record) r.seconds.assign(backward_times.begin() + 1, backward_times.end());
    r.about = {{"bench", "op"}, {"op", name}, {"pass", record ? "backward" : "forward"},
               {"B", s.B},      {"L", s.L},   {"D", s.D},
               {"E", s.E},      {"N", s.N},   {"V", s.V}};
    r.cost = cost;
    r.dtype = s.dtype;
    print_bench(r, common);
  }
}

}  // namespace krait::cli
