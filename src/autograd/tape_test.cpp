#include "krait/autograd/tape.h"

#include <gtest/gtest.h>

#include <map>

#include "krait/autograd/plan.h"
#include "krait/autograd/segment.h"
#include "krait/tensor/memory.h"
#include "krait/testing/files.h"
#include "krait/testing/op_test.h"

namespace krait {
namespace {

using namespace krait::testing;

// Three ops of the simplest kind.

int squared = 0;  // runs of the op below

// y = w x² with a scalar w (a parameter); segments keep it
Tensor scaled_square(Context& c, const Tensor& x, const Tensor& w, bool dear = true) {
  const Kept kept(c, dear);
  Tensor y = c.alloc(x.shape, DType::f32);
  c.cost("scaled_square", 0, 2.0 * static_cast<double>(x.numel()));
  if (!c.planning()) {
    for (int64_t i = 0; i < x.numel(); ++i) set(y, i, get(w, 0) * get(x, i) * get(x, i));
    ++squared;
  }
  if (c.tape && needs_grad({x, w})) {
    c.tape->watch(y);
    c.tape->record([=](Context& b) {
      const Tensor dy = b.tape->grad(y);
      if (!dy) return;
      const auto [dx, add_x] = b.tape->grad_into(b, x);
      const auto [dw, add_w] = b.tape->grad_into(b, w);
      const Scratch scratch(b);
      const Tensor product = b.scratch(x.shape, DType::f32);  // x dy
      if (b.planning()) return;
      double sum = 0;
      for (int64_t i = 0; i < x.numel(); ++i) {
        set(product, i, get(x, i) * get(dy, i));
        sum += get(product, i) * get(x, i);
        if (dx) set(dx, i, (add_x ? get(dx, i) : 0.0) + 2 * get(w, 0) * get(product, i));
      }
      if (dw) set(dw, 0, (add_w ? get(dw, 0) : 0.0) + sum);
    });
  }
  return y;
}

int added = 0;  // runs of the op below

// sum = stream + x
Tensor add_to(Context& c, const Tensor& x, const Tensor& stream) {
  Tensor sum = c.alloc(x.shape, DType::f32);
  if (!c.planning()) {
    for (int64_t i = 0; i < x.numel(); ++i) set(sum, i, get(x, i) + get(stream, i));
    ++added;
  }
  if (c.tape && needs_grad({x, stream})) {
    c.tape->watch_sum(sum, stream);
    c.tape->record([=](Context& b) {
      const Tensor dsum = b.tape->grad(sum);
      b.tape->uncover(sum);
      if (!dsum) return;
      const auto [dx, add] = b.tape->grad_into(b, x);
      if (!dx || b.planning()) return;
      for (int64_t i = 0; i < x.numel(); ++i) set(dx, i, (add ? get(dx, i) : 0.0) + get(dsum, i));
    });
  }
  return sum;
}

// y = x times a random number of each call
Tensor shaken(Context& c, const Tensor& x) {
  const double factor = Philox{c.rng.seed, c.rng.stream++}.uniform(0);
  Tensor y = c.alloc(x.shape, DType::f32);
  if (!c.planning())
    for (int64_t i = 0; i < x.numel(); ++i) set(y, i, get(x, i) * factor);
  if (c.tape && x.var) {
    c.tape->watch(y);
    c.tape->record([=](Context& b) {
      const Tensor dy = b.tape->grad(y);
      if (!dy) return;
      const auto [dx, add] = b.tape->grad_into(b, x);
      if (b.planning()) return;
      for (int64_t i = 0; i < x.numel(); ++i)
        set(dx, i, (add ? get(dx, i) : 0.0) + factor * get(dy, i));
    });
  }
  return y;
}

// A scalar parameter with memory and a slot of its own.
struct Parameter {
  float value, gradient = std::nanf("");
  Var var;
  Tensor tensor;
  explicit Parameter(float v) : value(v) {
    tensor = Tensor(&value, DType::f32, {1});
    var.whole = tensor;
    var.grad = Tensor(&gradient, DType::f32, {1});
    tensor.var = &var;
  }
};

TEST(Tape, ChainRule) {
  TestContext t(true);
  const Tensor x = t.from({1, 2, -3}, {3}, DType::f32), one = t.from({1}, {1}, DType::f32, false);
  t.seed_grad(scaled_square(t.c, scaled_square(t.c, x, one), one), {1, 1, 1});
  t.tape.backward(t.c);
  EXPECT_EQ(to_double(t.tape.grad(x)), (Values{4, 32, -108}));
  EXPECT_EQ(t.tape.size(), 0u);
}

TEST(Tape, UsedTwiceAddsUp) {
  TestContext t(true);
  const Tensor x = t.from({3}, {1}, DType::f32), w = t.from({5}, {1}, DType::f32);
  const Tensor a = scaled_square(t.c, x, w), b = scaled_square(t.c, x, w);
  t.tape.seed(t.c, a);
  t.tape.seed(t.c, b, 10.0f);
  t.tape.backward(t.c);
  EXPECT_EQ(get(t.tape.grad(x), 0), 11 * 2 * 5 * 3);
  EXPECT_EQ(get(t.tape.grad(w), 0), 11 * 9);
}

TEST(Tape, UnusedResultsCostNothing) {
  TestContext t(true);
  const Tensor x = t.from({3}, {1}, DType::f32), w = t.from({5}, {1}, DType::f32, false);
  const Tensor unused = scaled_square(t.c, x, w), y = scaled_square(t.c, x, w);
  t.tape.seed(t.c, y);
  t.tape.backward(t.c);
  EXPECT_FALSE(t.tape.grad(unused));
  EXPECT_EQ(get(t.tape.grad(x), 0), 30);
  EXPECT_FALSE(t.tape.grad(w));
  EXPECT_FALSE(t.tape.grad_into(t.c, w).grad);
}

TEST(Tape, OnlyWhatDependsOnAVariableIsOne) {
  TestContext t(true);
  const Tensor x = t.from({3}, {1}, DType::f32, false), w = t.from({5}, {1}, DType::f32, false);
  const Tensor y = scaled_square(t.c, x, w);
  EXPECT_EQ(y.var, nullptr);
  EXPECT_EQ(t.tape.size(), 0u);
  EXPECT_EQ(error_of([&] { t.tape.seed(t.c, y); }),
            "Tape::seed: the tensor does not depend on any variable");
}

// What no view has written is cleared; the memory was NaN.
TEST(Tape, PartialViewsFillWithZero) {
  TestContext t(true);
  const Tensor x = t.from({1, 2, 3, 4, 5, 6}, {2, 3}, DType::f32),
               one = t.from({1}, {1}, DType::f32, false);
  t.tape.seed(t.c, scaled_square(t.c, x.slice(1, 1, 2), one));
  t.tape.backward(t.c);
  EXPECT_EQ(to_double(t.tape.grad(x)), (Values{0, 4, 0, 0, 10, 0}));
  EXPECT_EQ(to_double(t.tape.grad(x.slice(1, 1, 3))), (Values{4, 0, 10, 0}));
  const GradTarget other = t.tape.grad_into(t.c, x.select(0, 0));
  EXPECT_TRUE(other.add);
  EXPECT_EQ(to_double(other.grad), (Values{0, 4, 0}));
}

// The halves of a projection, from the last to the first: nothing is cleared, nothing added.
TEST(Tape, ViewsThatDoNotOverlapOverwrite) {
  TestContext t(true);
  const Tensor x = t.from({1, 2, 3, 4, 5, 6}, {2, 1, 3}, DType::f32);
  const auto into = [&](int64_t begin, int64_t end) {
    return t.tape.grad_into(t.c, x.slice(2, begin, end));
  };
  EXPECT_FALSE(into(2, 3).add);
  const GradTarget first = into(0, 1);
  EXPECT_FALSE(first.add);
  for (int64_t i = 0; i < 2; ++i) set(first.grad, i, 7);
  const GradTarget overlaps = into(0, 2);  // the places that are left are cleared first
  EXPECT_TRUE(overlaps.add);
  EXPECT_EQ(to_double(overlaps.grad), (Values{7, 0, 7, 0}));
  EXPECT_TRUE(into(2, 3).add);

  const Tensor y = t.from({1, 2, 3, 4}, {2, 2}, DType::f32);
  for (int64_t i : {1, 0}) {
    const GradTarget half = t.tape.grad_into(t.c, y.slice(1, i, i + 1));
    EXPECT_FALSE(half.add);
    for (int64_t row = 0; row < 2; ++row) set(half.grad, row, static_cast<double>(10 * i + row));
  }
  EXPECT_EQ(to_double(t.tape.grad(y)), (Values{0, 10, 1, 11}));
  EXPECT_TRUE(t.tape.grad_into(t.c, y.slice(1, 0, 1)).add);
}

TEST(Tape, WholeViewsOverwrite) {
  TestContext t(true);
  const Tensor x = t.from({1, 2}, {2}, DType::f32);
  EXPECT_FALSE(t.tape.grad_into(t.c, x.reshape({2, 1})).add);
  EXPECT_TRUE(t.tape.grad_into(t.c, x).add);
}

TEST(Tape, GradientsHaveTheDtypeOfTheSlot) {
  TestContext t(true);
  Tensor x = t.from({1, 2}, {2}, DType::bf16), w = t.from({1, 2}, {2}, DType::bf16);
  w.var->grad_dtype = DType::f32;  // as parameters have it
  EXPECT_EQ(t.tape.grad_into(t.c, x).grad.dtype, DType::bf16);
  const Tensor part = t.tape.grad_into(t.c, w.slice(0, 1, 2)).grad;
  EXPECT_EQ(part.dtype, DType::f32);
  EXPECT_EQ(part.data, static_cast<float*>(w.var->grad.data) + 1);
}

TEST(Tape, RefusesGradientsInsideAScratch) {
  TestContext t(true);
  const Tensor x = t.from({1}, {1}, DType::f32);
  const Scratch s(t.c);
  EXPECT_EQ(error_of([&] { t.tape.grad_into(t.c, x); }),
            "Tape: a gradient is first asked for inside a Scratch");
}

// x -> s1 = s0 + a x², s2 = s1 + b s1²: one buffer for the gradients of s0, s1, s2.
TEST(Tape, ResidualStreamHasOneGradient) {
  TestContext t(true);
  const Tensor s0 = t.from({3}, {1}, DType::f32), x = t.from({2}, {1}, DType::f32);
  const Tensor a = t.from({5}, {1}, DType::f32), b = t.from({7}, {1}, DType::f32);
  const Tensor s1 = add_to(t.c, scaled_square(t.c, x, a), s0);
  const Tensor s2 = add_to(t.c, scaled_square(t.c, s1, b), s1);
  EXPECT_EQ(&s2.var->storage(), s0.var);
  t.tape.seed(t.c, s2);
  t.tape.backward(t.c);
  const double ds1 = 1 + 2 * 7 * 23.0;
  EXPECT_EQ(get(t.tape.grad(s0), 0), ds1);
  EXPECT_EQ(get(t.tape.grad(x), 0), ds1 * 2 * 5 * 2);
  EXPECT_EQ(get(t.tape.grad(a), 0), ds1 * 4);
  EXPECT_EQ(get(t.tape.grad(b), 0), 23 * 23);
}

TEST(Tape, RefusesUseOfTheStreamAfterItsSum) {
  TestContext t(true);
  const Tensor s = t.from({3}, {1}, DType::f32), x = t.from({2}, {1}, DType::f32),
               one = t.from({1}, {1}, DType::f32);
  const Tensor sum = add_to(t.c, x, s);
  const Tensor late = scaled_square(t.c, s, one);
  t.tape.seed(t.c, sum);
  t.tape.seed(t.c, late);
  EXPECT_EQ(error_of([&] { t.tape.backward(t.c); }),
            "a residual stream was used after something was added to it");
}

TEST(Tape, SumOverAPartIsRefused) {
  TestContext t(true);
  const Tensor s = t.from({3, 4}, {2}, DType::f32), x = t.from({2}, {1}, DType::f32);
  EXPECT_EQ(error_of([&] { add_to(t.c, x, s.slice(0, 0, 1)); }),
            "Tape::watch_sum: a residual stream is added to as a whole");
}

TEST(Tape, ShareGradTakesTheGradientOver) {
  TestContext t(true);
  const Tensor a = t.from({1, 2}, {2}, DType::f32), b = t.from({1, 2}, {2, 1}, DType::f32);
  t.tape.share_grad(t.c, a, b);  // nothing there yet
  EXPECT_FALSE(t.tape.grad(b));
  t.seed_grad(a, {5, 6});
  t.tape.share_grad(t.c, a, b);
  EXPECT_EQ(to_double(t.tape.grad(b)), (Values{5, 6}));
  EXPECT_EQ(t.tape.grad(b).shape, (Shape{2, 1}));
  EXPECT_EQ(error_of([&] { t.tape.share_grad(t.c, a, b); }),
            "Tape::share_grad: the target has a gradient already");
  const Tensor reserved = t.from({1, 2}, {2}, DType::f32);
  t.tape.reserve_grad(t.c, reserved);
  void* const memory = reserved.var->grad.data;
  t.tape.share_grad(t.c, a, reserved);
  EXPECT_EQ(to_double(t.tape.grad(reserved)), (Values{5, 6}));
  EXPECT_EQ(t.tape.grad(reserved).data, memory);
}

TEST(Tape, ParametersKeepTheirGradientAfterReset) {
  Parameter w(5);
  for (int step = 1; step <= 2; ++step) {
    TestContext t(true);
    t.tape.seed(t.c, scaled_square(t.c, t.from({3}, {1}, DType::f32), w.tensor));
    t.tape.backward(t.c);
    t.tape.reset();
    EXPECT_EQ(w.gradient, 9.0f * static_cast<float>(step)) << "two steps accumulate";
  }
}

// A stack of layers h <- h + shake(w shake(h)²) as segments, the way models are made.
constexpr int64_t kWidth = 32;

struct Stack {
  std::vector<Parameter> weights;
  TestContext
      test;  // of the input only: segments give memory back, which it would take for overruns
  Arena arena{1 << 20};
  Tape tape;
  Context c;
  Tensor start, end;

  Stack(bool record, Recompute recompute, int layers = 3, bool nested = false) {
    std::memset(arena.take_low(0), 0xFF, 1 << 20);
    c.arena = &arena;
    c.rng = {3, 0};
    if (record) c.tape = &tape;
    weights.reserve(static_cast<size_t>(layers));
    for (int i = 0; i < layers; ++i) weights.emplace_back(0.1f * static_cast<float>(i + 1));
    start = test.random({kWidth}, DType::f32, 1);
    if (record) tape.watch(start);
    const auto run = [this, recompute](Context& outer, Tensor h) {
      for (Parameter& p : weights) {
        const auto layer = [&p, h](Context& inner) -> Tensors {
          return {
              add_to(inner, shaken(inner, scaled_square(inner, shaken(inner, h), p.tensor)), h)};
        };
        h = segment(outer, {h}, layer, {.recompute = recompute})[0];
      }
      return h;
    };
    const auto all = [run, first = start](Context& inner) { return Tensors{run(inner, first)}; };
    end = nested ? segment(c, {start}, all, {.recompute = recompute})[0] : run(c, start);
  }
  void backward() {
    const GradTarget g = tape.grad_into(c, end);
    const Values cotangent = random_values(kWidth, 11);
    for (int64_t i = 0; i < kWidth; ++i) set(g.grad, i, cotangent[static_cast<size_t>(i)]);
    tape.backward(c);
  }
  Values gradients() {
    Values all = to_double(tape.grad(start));
    for (const Parameter& p : weights) all.push_back(p.gradient);
    return all;
  }
};

TEST(Segment, RecomputeGivesTheSameBits) {
  Stack kept(true, Recompute::cheap), again(true, Recompute::layer), all(true, Recompute::none),
      inference(false, Recompute::cheap);
  expect_same_bits(to_double(kept.end), to_double(again.end), "results");
  expect_same_bits(to_double(kept.end), to_double(inference.end), "inference");
  kept.backward();
  again.backward();
  all.backward();
  expect_same_bits(kept.gradients(), again.gradients(), "gradients");
  expect_same_bits(kept.gradients(), all.gradients(), "gradients, all kept");
  EXPECT_GT(max_abs(kept.gradients()), 0);
  EXPECT_EQ(kept.c.rng.stream, again.c.rng.stream) << "recomputing drew new numbers";
  EXPECT_EQ(all.c.rng.stream, again.c.rng.stream);
}

TEST(Segment, NestedGivesTheSameBits) {
  Stack plain(true, Recompute::cheap);
  plain.backward();
  for (const Recompute recompute : {Recompute::none, Recompute::cheap, Recompute::layer}) {
    Stack nested(true, recompute, 3, true);
    nested.backward();
    expect_same_bits(nested.gradients(), plain.gradients(),
                     std::to_string(static_cast<int>(recompute)));
  }
}

TEST(Segment, InferenceKeepsTheResultsAlone) {
  const Stack s(false, Recompute::cheap);
  EXPECT_EQ(s.arena.low(), 3 * kWidth * sizeof(float));
  EXPECT_EQ(s.arena.high(), 0u);
}

TEST(Segment, InferenceInPlaceOfTheInput) {
  TestContext t;
  const Tensor w = t.from({2}, {1}, DType::f32);
  Tensor h = t.c.alloc({kWidth}, DType::f32);
  fill(t.c, h, 0.5f);
  const size_t low = t.arena.low();
  for (int layer = 0; layer < 3; ++layer)
    h = segment(t.c, {h}, [&](Context& c) { return Tensors{scaled_square(c, h, w)}; },
                {.replace_from = 0})[0];
  EXPECT_EQ(t.arena.low(), low);
  EXPECT_EQ(t.arena.high(), 0u);
  EXPECT_EQ(get(h, kWidth - 1), 0.5);
}

TEST(Segment, TrainingGivesItsMemoryBack) {
  size_t after[2];
  std::map<Recompute, size_t> a_layer;
  for (const Recompute recompute : {Recompute::none, Recompute::cheap, Recompute::layer}) {
    size_t peaks[2];
    for (int layers : {1, 8}) {
      Stack s(true, recompute, layers);
      s.backward();
      after[layers == 8] = s.arena.high();
      peaks[layers == 8] = s.arena.peak();
    }
    EXPECT_EQ(after[0], after[1]) << "gradients inside the segments were not given back";
    a_layer[recompute] = (peaks[1] - peaks[0]) / 7 / (kWidth * sizeof(float));
  }
  // All of its tensors; the square and the result; the result of each.
  EXPECT_EQ(a_layer[Recompute::none], 4u);
  EXPECT_EQ(a_layer[Recompute::cheap], 2u);
  EXPECT_EQ(a_layer[Recompute::layer], 1u);
}

// Only what is kept for the second run lies below it: not the result of the first, kept or copied.
TEST(Segment, TheResultIsGivenBackBeforeTheSecondRun) {
  for (const bool dear : {false, true}) {
    Parameter w(2);
    Arena arena(1 << 16);
    Tape tape;
    Context outer;
    outer.arena = &arena;
    outer.tape = &tape;
    Tensor x = outer.alloc({kWidth}, DType::f32);
    fill(outer, x, 0.5f);
    tape.watch(x);
    std::vector<size_t> low;
    const auto body = [&](Context& c) {
      low.push_back(c.arena->low());
      const Tensor y = scaled_square(c, x, w.tensor);
      const Kept kept(c, dear);
      return Tensors{add_to(c, y, x)};
    };
    const Tensor end = segment(outer, {x}, body)[0];
    EXPECT_EQ(arena.low(), low[0] + 2 * kWidth * sizeof(float));
    tape.seed(outer, scaled_square(outer, end, w.tensor));
    tape.backward(outer);
    ASSERT_EQ(low.size(), 2u);
    EXPECT_EQ(low[1], low[0] + kWidth * sizeof(float));
  }
}

// Runs of scaled_square, dear or not, in one layer forward and backward, and its cost as planned.
std::pair<int, double> squares_of(bool dear, Recompute recompute) {
  Parameter w(0.5f);
  const auto work = [&](Context& c) {
    Tensor x = c.alloc({kWidth}, DType::f32);
    fill(c, x, 0.5f);
    c.tape->watch(x);
    const auto layer = [&, x](Context& inner) {
      return Tensors{shaken(inner, scaled_square(inner, x, w.tensor, dear))};
    };
    c.tape->seed(c, segment(c, {x}, layer, {.recompute = recompute})[0]);
    c.tape->backward(c);
  };
  const Plan planned = plan(Context{}, true, work);
  w.var.written = false;
  squared = 0;
  Arena arena(planned.bytes);
  Tape tape;
  Context c;
  c.arena = &arena;
  c.tape = &tape;
  work(c);
  return {squared, planned.costs.at("scaled_square").flops / (2 * kWidth)};
}

TEST(Segment, WhatIsKeptIsComputedOnce) {
  using Runs = std::pair<int, double>;
  EXPECT_EQ(squares_of(true, Recompute::cheap), (Runs{1, 1}));
  EXPECT_EQ(squares_of(true, Recompute::layer), (Runs{2, 2}));
  EXPECT_EQ(squares_of(false, Recompute::cheap), (Runs{2, 2}));
  EXPECT_EQ(squares_of(false, Recompute::none), (Runs{1, 1}));
}

TEST(Segment, TheLastSumIsComputedOnce) {
  for (const Recompute recompute : {Recompute::none, Recompute::cheap, Recompute::layer}) {
    added = squared = 0;
    Stack s(true, recompute);
    s.backward();
    EXPECT_EQ(added, 3);
    EXPECT_EQ(squared, recompute == Recompute::layer ? 6 : 3);
  }
}

TEST(Segment, RefusesABodyThatDoesSomethingElse) {
  TestContext t(true);
  const Tensor w = t.from({2}, {1}, DType::f32), x = t.random({kWidth}, DType::f32, 1);
  int runs = 0;
  const auto body = [&](Context& c) {
    return Tensors{scaled_square(c, runs++ == 0 ? x : x.slice(0, 0, 3), w)};
  };
  t.tape.seed(t.c, segment(t.c, {x}, body)[0]);
  EXPECT_EQ(error_of([&] { t.tape.backward(t.c); }),
            "a segment does not do the same when it is run again");
}

// A parameter's gradient without memory of its own outlives the segments that use it, and is one.
TEST(Segment, GradientsInTheArenaLast) {
  Parameter own(0.5f), lent(0.5f);
  const auto run = [](Parameter& w, bool in_arena) {
    Arena arena(1 << 12);
    Tape tape;
    Context c;
    c.arena = &arena;
    c.tape = &tape;
    if (in_arena) {
      w.var.grad = Tensor();
      tape.keep_in_arena(w.var);
    }
    Tensor h = c.alloc({kWidth}, DType::f32);
    fill(c, h, 0.75f);
    tape.watch(h);
    for (int layer = 0; layer < 3; ++layer)
      h = segment(c, {h},
                  [&, h](Context& inner) { return Tensors{scaled_square(inner, h, w.tensor)}; })[0];
    tape.seed(c, h);
    tape.backward(c);
    return get(w.var.grad, 0);
  };
  const double expected = run(own, false);
  EXPECT_NE(expected, 0);
  EXPECT_EQ(run(lent, true), expected);
}

TEST(Segment, RefusesAParameterThatNobodySaidItReads) {
  Parameter w(0.5f);
  w.var.grad = Tensor();
  TestContext t(true);
  t.tape.keep_in_arena(w.var);
  const Tensor x = t.random({kWidth}, DType::f32, 1);
  const auto body = [&](Context& c) {
    Tensor y = c.alloc(x.shape, DType::f32);
    c.tape->watch(y);
    c.tape->record([&](Context& b) { b.tape->grad_into(b, w.tensor); });
    return Tensors{y};
  };
  t.tape.seed(t.c, segment(t.c, {x}, body)[0]);
  EXPECT_EQ(error_of([&] { t.tape.backward(t.c); }),
            "Tape: a segment uses a parameter that none of its ops said it reads");
}

// What an op wrote into memory from outside, as states are, stays there and has a gradient.
TEST(Segment, ResultsInMemoryFromOutsideStayThere) {
  Parameter w(2);
  float in[2] = {1, 3}, out[2] = {};
  Tensor x(in, DType::f32, {2});
  const Tensor state(out, DType::f32, {2});
  Arena arena(1 << 12);
  Tape tape;
  Context c;
  c.arena = &arena;
  c.tape = &tape;
  tape.watch(x);
  const auto body = [&](Context& inner) {
    Tensor end = state;
    copy(inner, scaled_square(inner, x, w.tensor).detach(), end);
    inner.tape->watch(end);
    inner.tape->record([=](Context& b) {
      const Tensor dend = b.tape->grad(end), dx = b.tape->grad_into(b, x).grad;
      for (int64_t i = 0; i < 2; ++i) set(dx, i, get(dend, i));
    });
    return Tensors{end};
  };
  const Tensor end = segment(c, {x}, body)[0];
  EXPECT_EQ(end.data, out);
  EXPECT_EQ(to_double(end), (Values{2, 18}));
  tape.seed(c, end, 5);
  tape.backward(c);
  EXPECT_EQ(to_double(tape.grad(x)), (Values{5, 5}));
}

TEST(Plan, IsExactToTheByte) {
  for (const Recompute recompute : {Recompute::none, Recompute::cheap, Recompute::layer}) {
    Parameter w(0.5f);
    const auto work = [&](Context& c) {
      Tensor x = c.alloc({kWidth}, DType::f32);
      if (!c.planning()) std::fill(x.as<float>(), x.as<float>() + kWidth, 0.5f);
      c.tape->watch(x);
      const auto layer = [&, x](Context& inner) -> Tensors {
        return {scaled_square(inner, scaled_square(inner, x, w.tensor), w.tensor)};
      };
      const Tensor y = segment(c, {x}, layer, {.recompute = recompute})[0];
      c.tape->seed(c, y);
      c.tape->backward(c);
    };
    const size_t bytes = plan(Context{}, true, work).bytes;
    EXPECT_TRUE(std::isnan(w.gradient)) << "planning wrote to a gradient";
    w.var.written = false;
    const auto run = [&](size_t capacity) {
      Arena arena(capacity);
      Tape tape;
      Context c;
      c.arena = &arena;
      c.tape = &tape;
      work(c);
    };
    EXPECT_NO_THROW(run(bytes));
    EXPECT_GT(w.gradient, 0);
    EXPECT_THROW(run(bytes - 64), Error);
  }
}

}  // namespace
}  // namespace krait
