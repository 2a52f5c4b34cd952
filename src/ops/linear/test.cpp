#include "krait/ops/linear/linear.h"
#include "krait/ops/linear/reference.h"
#include "krait/testing/op_test.h"

namespace krait::testing {
namespace {

using ops::linear;
using ops::linear_add;
using ops::linear_into;
namespace reference = ops::reference;

struct Case {
  int64_t M, N, K;
  DType x = DType::f32, w = DType::f32, out = DType::f32;
  bool bias = true, stream = false, strided = false;

  std::string name() const {
    return fmt::format("M{} N{} K{} {} x {} -> {}{}{}{}", M, N, K, name_of(x), name_of(w),
                       name_of(out), bias ? " bias" : "", stream ? " stream" : "",
                       strided ? " strided" : "");
  }
};

constexpr DType kF32 = DType::f32, kBf16 = DType::bf16;

// Sizes off every tile, on both sides of the border between the two kernels, and all mixes of types.
std::vector<Case> cases() {
  std::vector<Case> all;
  int64_t i = 0;
  for (int64_t M : {1, 2, 3, 5, 7, 8, 9, 12, 13, 31, 33, 97, 257})
    for (auto [N, K] : {std::pair<int64_t, int64_t>{1, 31},
                        {31, 1},
                        {97, 2},
                        {31, 97},
                        {80, 48},
                        {33, 257},
                        {257, 40}}) {
      ++i;
      for (DType w : {kF32, kBf16})
        all.push_back(
            {M, N, K, i % 2 ? kF32 : kBf16, w, i % 3 ? kF32 : kBf16, i % 2 == 0, false, i % 4 < 2});
      all.push_back({M, N, K, kF32, i % 2 ? kF32 : kBf16, kF32, i % 3 == 0, true, i % 4 < 2});
    }
  for (DType t : {kF32, kBf16}) {
    all.push_back({1025, 31, 97, t, t, t, true, false, true});
    all.push_back({2, 1025, 1025, t, t, t});
    all.push_back({97, 1025, 257, t, t, kF32, true, true});
    all.push_back({300, 2100, 33, t, t, t});
    all.push_back({63, 80, 63, t, t, t});
    // On both sides of the borders between a GPU's kernels, some with blocks that share out K.
    for (int64_t M : {1, 8, 9, 16, 17, 64, 65, 128, 129})
      for (auto [N, K] : {std::pair<int64_t, int64_t>{97, 64}, {40, 1032}, {530, 264}})
        all.push_back({M, N, K, t, t, M % 2 ? t : kF32, M % 3 == 0, M % 2 == 0});
    all.push_back({2, 24, 4096, t, t, kF32});
    all.push_back({3, 16408, 40, t, t, kF32});
    all.push_back({1, 1096, 2072, t, t, kF32, true, true});
    all.push_back({33, 3300, 96, t, t, t});
    all.push_back({64, 6200, 40, t, t, t});
    for (Case c : {Case{0, 5, 7}, Case{3, 0, 7}}) {
      c.x = c.w = t;
      all.push_back(c);
    }
  }
  return all;
}

struct LinearRun {
  explicit LinearRun(const Case& q) : t(true) {
    x = t.random({1, q.M, q.K}, q.x, 1, {.strided = q.strided});
    w = t.random({q.N, q.K}, q.w, 2);
    w.var->grad_dtype = DType::f32;  // as a parameter's
    if (q.bias) bias = t.random({q.N}, kF32, 3);
    if (q.stream) stream = t.random({1, q.M, q.N}, kF32, 4);
    y = q.stream ? linear_add(t.c, x, w, bias, stream) : linear(t.c, x, w, bias, q.out);
  }
  void backward(const Values& dy) {
    t.seed_grad(y, dy);
    t.tape.backward(t.c);
  }
  TestContext t;
  Tensor x, w, bias, stream, y;
};

// Values as the product sees them: x in the type of w.
Values seen(const Tensor& t, DType type) {
  Values v = to_double(t);
  if (type == kBf16)
    for (double& e : v) e = static_cast<float>(bf16(static_cast<float>(e)));
  return v;
}

std::vector<float> to_float(const Values& v) { return {v.begin(), v.end()}; }

TEST(Linear, ForwardWithinTwiceAPlainRun) {
  for (const Case& q : cases()) {
    LinearRun r(q);
    EXPECT_EQ(r.y.shape, (Shape{1, q.M, q.N}));
    EXPECT_EQ(r.y.dtype, q.stream ? kF32 : q.out);
    const Values x = seen(r.x, q.w), w = to_double(r.w), b = to_double(r.bias),
                 s = to_double(r.stream);
    const Values exact = reference::linear(x, w, b, s, q.M, q.N, q.K);
    const auto plain =
        reference::linear(to_float(x), to_float(w), to_float(b), to_float(s), q.M, q.N, q.K);
    expect_within_twice_plain(to_double(r.y), exact, to_double(plain), r.y.dtype, q.name());
  }
}

// So wide that blocks of a GPU have one tile of W after the other.
TEST(Linear, AHeadOfFewRows) {
  constexpr int64_t N = 17040, K = 328;
  for (int64_t M : {1, 3, 8, 9, 16}) {
    TestContext t(false, size_t{16} << 20);
    const Tensor x = t.random({M, K}, kBf16, 1), w = t.random({N, K}, kBf16, 2),
                 bias = t.random({N}, kF32, 3);
    const DType out = M == 3 ? kBf16 : kF32;
    const Tensor y = linear(t.c, x, w, bias, out), again = linear(t.c, x, w, bias, out);
    const Values of_x = to_double(x), of_w = to_double(w), of_bias = to_double(bias);
    const Values exact = reference::linear(of_x, of_w, of_bias, {}, M, N, K);
    const auto plain =
        reference::linear(to_float(of_x), to_float(of_w), to_float(of_bias), {}, M, N, K);
    const std::string name = fmt::format("M{}", M);
    expect_within_twice_plain(to_double(y), exact, to_double(plain), out, name);
    expect_same_bits(y, again, name);
  }
}

TEST(Linear, BackwardWithinTwiceAPlainRun) {
  for (const Case& q : cases()) {
    LinearRun r(q);
    Values dy = random_values(q.M * q.N, 9);
    if (q.w == kBf16 || q.out == kBf16)  // what any product in that type sees
      for (double& e : dy) e = static_cast<float>(bf16(static_cast<float>(e)));
    r.backward(dy);
    const Values x = seen(r.x, q.w), w = to_double(r.w);
    const auto exact = reference::linear_backward(x, w, dy, q.M, q.N, q.K);
    const auto plain =
        reference::linear_backward(to_float(x), to_float(w), to_float(dy), q.M, q.N, q.K);
    const Tensor dx = r.t.tape.grad(r.x), dw = r.t.tape.grad(r.w);
    EXPECT_EQ(dx.dtype, q.x);
    EXPECT_EQ(dw.dtype, kF32);
    expect_within_twice_plain(to_double(dx), exact.x, to_double(plain.x), q.x, q.name() + " dx");
    expect_within_twice_plain(to_double(dw), exact.w, to_double(plain.w), kF32, q.name() + " dw");
    if (q.bias)
      expect_within_twice_plain(to_double(r.t.tape.grad(r.bias)), exact.bias, to_double(plain.bias),
                                kF32, q.name() + " dbias");
    if (q.stream)
      expect_same_bits(to_double(r.t.tape.grad(r.stream)), to_double(r.t.tape.grad(r.y)),
                       q.name() + " dstream");
  }
}

TEST(Linear, T38_GradientOfEachInputByComplexStep) {
  constexpr int64_t M = 5, N = 7, K = 6;
  for (bool bias : {false, true}) {
    LinearRun r({M, N, K, kF32, kF32, kF32, bias, true});
    const Values dy = random_values(M * N, 9);
    r.backward(to_double(to_float(dy)));
    const ComplexValues x = to_complex(to_double(r.x)), w = to_complex(to_double(r.w)),
                        b = to_complex(to_double(r.bias)), s = to_complex(to_double(r.stream));
    const auto loss = [&](const ComplexValues& x_, const ComplexValues& w_, const ComplexValues& b_,
                          const ComplexValues& s_) {
      return dot(reference::linear(x_, w_, b_, s_, M, N, K), dy);
    };
    const double tolerance = 1e-6;  // K, N or M float32 roundings
    expect_relative(
        to_double(r.t.tape.grad(r.x)),
        complex_step_gradient([&](auto& v) { return loss(v, w, b, s); }, to_double(r.x)), tolerance,
        "dx");
    expect_relative(
        to_double(r.t.tape.grad(r.w)),
        complex_step_gradient([&](auto& v) { return loss(x, v, b, s); }, to_double(r.w)), tolerance,
        "dw");
    expect_relative(
        to_double(r.t.tape.grad(r.stream)),
        complex_step_gradient([&](auto& v) { return loss(x, w, b, v); }, to_double(r.stream)),
        tolerance, "dstream");
    if (bias)
      expect_relative(
          to_double(r.t.tape.grad(r.bias)),
          complex_step_gradient([&](auto& v) { return loss(x, w, v, s); }, to_double(r.bias)),
          tolerance, "dbias");
  }
}

TEST(Linear, SameBitsForAnyNumberOfThreads) {
  for (DType type : {kF32, kBf16})
    for (auto [M, N, K] : {std::tuple<int64_t, int64_t, int64_t>{1, 300, 97},
                           {8, 257, 768},
                           {64, 40, 4099},
                           {97, 1025, 257},
                           {33, 16, 4096},
                           {512, 48, 512}}) {
      const Case q{M, N, K, type, type, type};
      const Values dy = random_values(M * N, 9);
      Values first[4];
      for (int threads : {1, 2, 4, 3}) {
        const ThreadCount count(threads);
        LinearRun r(q);
        r.backward(dy);
        const Values now[4] = {to_double(r.y), to_double(r.t.tape.grad(r.x)),
                               to_double(r.t.tape.grad(r.w)), to_double(r.t.tape.grad(r.bias))};
        for (int i = 0; i < 4; ++i) {
          if (threads == 1) first[i] = now[i];
          expect_same_bits(now[i], first[i],
                           fmt::format("{} threads, {}, result {}", threads, q.name(), i));
        }
      }
    }
}

TEST(Linear, ARowOfABatchIsThatRowAlone) {
  KRAIT_ONLY_ON_CPU("the kernel for few rows is the CPU's");
  constexpr int64_t N = 130, K = 200;
  for (DType type : {kF32, kBf16})
    for (int64_t M : {2, 5, 8, 11, type == kF32 ? 32 : 16}) {  // the most that share the kernel
      TestContext t;
      const Tensor x = t.random({M, K}, type, 1), w = t.random({N, K}, type, 2);
      const Tensor all = linear(t.c, x, w, {}, kF32);
      for (int64_t m = 0; m < M; ++m)
        expect_same_bits(linear(t.c, x.slice(0, m, m + 1), w, {}, kF32), all.slice(0, m, m + 1),
                         fmt::format("row {} of {}", m, M));
    }
}

TEST(Linear, GradientsAddToWhatIsThere) {
  constexpr int64_t M = 40, N = 33, K = 20;
  for (DType type : {kF32, kBf16}) {
    TestContext t(true);
    const Tensor x = t.random({M, K}, type, 1), w = t.random({N, K}, type, 2),
                 b = t.random({N}, kF32, 3);
    w.var->grad_dtype = kF32;
    const Tensor y1 = linear(t.c, x, w, b, kF32), y2 = linear(t.c, x, w, b, kF32);
    const Values dy = random_values(M * N, 9);
    t.seed_grad(y2, dy);
    t.tape.backward(t.c, 1);
    const Values dx = to_double(t.tape.grad(x)), dw = to_double(t.tape.grad(w)),
                 db = to_double(t.tape.grad(b));
    t.seed_grad(y1, dy);
    t.tape.backward(t.c);
    const auto twice = [](Values v) {
      for (double& e : v) e *= 2;
      return v;
    };
    // One more rounding of the sum; the added product may be summed in another order.
    const double tolerance = 4 * rounding(kF32) * static_cast<double>(M);
    expect_relative(to_double(t.tape.grad(x)), twice(dx), type == kBf16 ? 0x1p-8 : tolerance, "dx");
    expect_relative(to_double(t.tape.grad(w)), twice(dw), tolerance, "dw");
    expect_relative(to_double(t.tape.grad(b)), twice(db), tolerance, "dbias");
  }
}

// dt_proj of Mamba: x is a slice of a wider result, whose gradient other ops add to.
TEST(Linear, GradientOfASliceGoesIntoTheWhole) {
  constexpr int64_t M = 40, N = 33, R = 16, W = 48;
  for (DType type : {kF32, kBf16}) {
    TestContext t(true);
    const Tensor wide = t.random({2, M / 2, W}, type, 1), w = t.random({N, R}, type, 2);
    w.var->grad_dtype = kF32;
    const Tensor y = linear(t.c, wide.slice(-1, 0, R), w, {}, kF32);
    const Values dy = random_values(M * N, 9);
    t.seed_grad(y, dy);
    t.tape.backward(t.c);
    const Values d = to_double(t.tape.grad(wide));
    const auto exact =
        reference::linear_backward(to_double(wide.slice(-1, 0, R)), to_double(w), dy, M, N, R);
    Values narrow;
    for (int64_t i = 0; i < M * W; ++i) {
      if (i % W < R) {
        narrow.push_back(d[static_cast<size_t>(i)]);
      } else {
        EXPECT_EQ(d[static_cast<size_t>(i)], 0) << i;
      }
    }
    expect_relative(narrow, exact.x, type == kBf16 ? 0x1p-7 : 1e-5, "dx of the slice");
  }
}

// Two residual branches: stream2 = stream + f(stream_read), as a block with its norm in front does it.
TEST(Linear, AChainOfSumsSharesOneGradient) {
  constexpr int64_t M = 24, D = 20;
  TestContext t(true);
  const Tensor stream = t.random({M, D}, kF32, 1), a = t.random({M, D}, kF32, 2),
               w1 = t.random({D, D}, kF32, 3), w2 = t.random({D, D}, kF32, 4);
  const Tensor s1 = linear_add(t.c, a, w1, {}, stream);
  const Tensor s2 = linear_add(t.c, a, w2, {}, s1);
  const Values dy = to_double(to_float(random_values(M * D, 9)));
  t.seed_grad(s2, dy);
  t.tape.backward(t.c);
  expect_same_bits(to_double(t.tape.grad(stream)), dy, "the identity's gradient");
  EXPECT_EQ(t.tape.grad(stream).data, t.tape.grad(s2).data);
  const Values av = to_double(a);
  const auto d1 = reference::linear_backward(av, to_double(w1), dy, M, D, D);
  const auto d2 = reference::linear_backward(av, to_double(w2), dy, M, D, D);
  Values da = d1.x;
  for (size_t i = 0; i < da.size(); ++i) da[i] += d2.x[i];
  expect_relative(to_double(t.tape.grad(a)), da, 1e-5, "da");
  expect_relative(to_double(t.tape.grad(w1)), d1.w, 1e-5, "dw1");
  expect_relative(to_double(t.tape.grad(w2)), d2.w, 1e-5, "dw2");
}

// By the kernels for few rows and by a product.
TEST(Linear, TakesThePlaceOfAStream) {
  for (DType type : {kF32, kBf16})
    for (int64_t M : {3, 40, 300}) {
      constexpr int64_t N = 24, K = 40;
      TestContext t;
      const Tensor stream = t.random({M, N}, kF32, 1), x = t.random({M, K}, type, 2),
                   w = t.random({N, K}, type, 3), bias = t.random({N}, kF32, 4);
      const Values apart = to_double(linear_add(t.c, x, w, bias, stream));
      const Tensor y = linear_add(t.c, x, w, bias, stream, true);
      EXPECT_EQ(y.data, stream.data);
      expect_relative(to_double(y), apart, 1e-6, "in place");  // a GPU may take another algorithm
    }
}

TEST(Linear, WritesIntoMemoryThatIsGiven) {
  for (DType type : {kF32, kBf16})
    for (int64_t M : {3, 40, 300}) {
      constexpr int64_t N = 24, K = 40;
      TestContext t;
      const Tensor x = t.random({M, K}, type, 2), w = t.random({N, K}, type, 3),
                   y = t.random({M, N}, kF32, 4);
      linear_into(t.c, x, w, y);
      const Values apart = to_double(linear(t.c, x, w, {}, kF32));
      expect_relative(to_double(y), apart, 1e-6, "into memory");
      EXPECT_THROW(linear_into(t.c, x, w, y.slice(0, 0, M - 1)), Error);
    }
}

TEST(Linear, PlanningTakesTheSameMemoryAndTouchesNone) {
  for (DType x : {kF32, kBf16})
    for (DType w : {kF32, kBf16})
      for (int64_t M : {4, 64}) {
        size_t peaks[2];
        for (bool planning : {true, false}) {
          TestContext t(true);
          Arena plan = Arena::planning();
          if (planning) t.c.arena = &plan;
          const Tensor xt = t.random({M, 24}, x, 1), wt = t.random({10, 24}, w, 2);
          Tensor y = linear(t.c, xt, wt, {}, kBf16);
          t.tape.seed(t.c, y);
          t.tape.backward(t.c);
          peaks[planning] = t.c.arena->peak();
        }
        EXPECT_EQ(peaks[0], peaks[1]);
      }
}

TEST(Linear, NamesWhatDoesNotFit) {
  TestContext t;
  const Tensor x = t.random({2, 6}, kF32, 1), w = t.random({4, 5}, kF32, 2);
  EXPECT_EQ(error_of([&] { linear(t.c, x, w, {}, kF32); }),
            "[linear] x: expected (..., K=5) with rows at one distance, got (2, 6)");
  EXPECT_THROW(linear(t.c, x, t.random({4, 6}, kF32, 2), t.random({5}, kF32, 3), kF32), Error);
  EXPECT_THROW(linear_add(t.c, x, t.random({4, 6}, kF32, 2), {}, t.random({2, 5}, kF32, 3)), Error);
}

}  // namespace
}  // namespace krait::testing
