#include "krait/ops/moe/moe.h"
#include "krait/ops/moe/reference.h"
#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

struct Case {
  MoeSizes z;
  RouteOptions o;
  DType dtype = DType::f32;
  bool in_first = false;
};

RouteOptions options(int64_t k, bool renormalize = false, double capacity = 0, float balance = 0) {
  return {k, renormalize, capacity, balance, 1};
}

// (n, N, K) <-> (n, K, N)
Values swapped(const Values& w, int64_t n, int64_t N, int64_t K) {
  Values v(w.size());
  for (int64_t e = 0; e < n; ++e)
    for (int64_t i = 0; i < N; ++i)
      for (int64_t k = 0; k < K; ++k)
        v[static_cast<size_t>((e * K + k) * N + i)] = w[static_cast<size_t>((e * N + i) * K + k)];
  return v;
}

struct MoeRun {
  // With the values of x and w, where given.
  explicit MoeRun(const Case& q, const Values& x_values = {}, const Values& w_values = {})
      : t(true) {
    const MoeSizes& z = q.z;
    const double scale = 2 / std::sqrt(static_cast<double>(z.D));
    gate =
        t.random(q.in_first ? Shape{z.D, z.n} : Shape{z.n, z.D}, DType::f32, 1, {.scale = scale});
    x = x_values.empty() ? t.random({1, z.T, z.D}, q.dtype, 2)
                         : t.from(x_values, {1, z.T, z.D}, q.dtype);
    const Shape shape = q.in_first ? Shape{z.n, z.D, z.F} : Shape{z.n, z.F, z.D};
    w = w_values.empty() ? t.random(shape, q.dtype, 3) : t.from(w_values, shape, q.dtype);
    w.var->grad_dtype = DType::f32;
    stream = t.random({1, z.T, z.F}, DType::f32, 4);
    report = t.tensor({2}, DType::f32);
    routing = route(t.c, x, gate, q.in_first, q.o, report);
    const Tensor rows = dispatch(t.c, x, routing);
    const Tensor product = expert_linear(t.c, rows, w, routing, q.in_first, DType::f32);
    y = combine(t.c, product, routing, stream);
  }
  TestContext t;
  Tensor gate, x, w, stream, report, y;
  Routing routing;
};

std::vector<Case> cases() {
  const auto bf16 = DType::bf16;
  return {{{7, 4, 5, 6}, options(1)},
          {{7, 4, 5, 6}, options(2, false, 0, 0.01f), DType::f32, true},
          {{1, 3, 8, 2}, options(3, true)},
          {{33, 5, 31, 17}, options(1, false, 1.0, 0.01f)},
          {{40, 6, 9, 20}, options(2, true, 0.5, 0.1f), DType::f32, true},
          {{97, 16, 64, 33}, options(2), bf16},
          {{300, 3, 72, 136}, options(2), bf16},
          {{150, 4, 40, 24}, options(1, false, 0.8), bf16, true},
          {{65, 1, 32, 32}, options(1)},
          {{5, 300, 4, 4}, options(4, true, 0, 0.01f)}};
}

// As the reference has them.
Values layout(const Case& q, const Values& w) {
  return q.in_first ? swapped(w, q.z.n, q.z.D, q.z.F) : w;
}
Values gate_layout(const Case& q, const Values& w) {
  return q.in_first ? swapped(w, 1, q.z.D, q.z.n) : w;
}

TEST(Moe, ForwardWithinTwiceAPlainRun) {
  for (const Case& q : cases()) {
    MoeRun r(q);
    const auto exact =
        moe_reference<double>(q.z, q.o, gate_layout(q, to_double(r.gate)), to_double(r.x),
                              layout(q, to_double(r.w)), [](double v) { return v; });
    const Values w = layout(q, to_double(r.w));
    const Values gate = gate_layout(q, to_double(r.gate));
    const auto plain =
        moe_reference<float>(q.z, q.o, std::vector<float>(gate.begin(), gate.end()), to_float(r.x),
                             std::vector<float>(w.begin(), w.end()), [](float v) { return v; });
    Values expected = exact.y, rough = to_double(plain.y);
    const Values stream = to_double(r.stream);
    for (size_t i = 0; i < stream.size(); ++i) expected[i] += stream[i], rough[i] += stream[i];
    const std::string name = fmt::format("T={} n={} k={}", q.z.T, q.z.n, q.o.k);
    expect_within_twice_plain(to_double(r.y), expected, rough, DType::f32, name);
    EXPECT_EQ(get(r.report, 1), static_cast<double>(exact.dropped)) << name;
    EXPECT_NEAR(get(r.report, 0), exact.balance, 1e-6 * std::abs(exact.balance)) << name;
  }
}

TEST(Moe, T38_GradientOfEachInputByComplexStep) {
  for (const Case& q : cases()) {
    if (q.z.T * q.z.D > 1500 || q.dtype == DType::bf16) continue;
    MoeRun r(q);
    const Values dy = to_double(
        to_float(r.t.from(random_values(q.z.T * q.z.F, 9), {1, q.z.T * q.z.F}, DType::f32, false)));
    r.t.seed_grad(r.y, dy);
    r.t.tape.backward(r.t.c);
    const ComplexValues gate = to_complex(gate_layout(q, to_double(r.gate))),
                        x = to_complex(to_double(r.x)), w = to_complex(layout(q, to_double(r.w)));
    const auto loss = [&](const ComplexValues& g, const ComplexValues& x_,
                          const ComplexValues& w_) {
      const auto m =
          moe_reference<Complex>(q.z, q.o, g, x_, w_, [](const Complex& v) { return v.real(); });
      return dot(m.y, dy) + m.balance;
    };
    const double tolerance = 2e-6;  // D, F or T float32 roundings
    const std::string name = fmt::format("T={} n={} k={} ", q.z.T, q.z.n, q.o.k);
    expect_relative(gate_layout(q, to_double(r.t.tape.grad(r.gate))),
                    complex_step_gradient([&](auto& v) { return loss(v, x, w); },
                                          gate_layout(q, to_double(r.gate))),
                    tolerance, name + "dgate");
    expect_relative(
        to_double(r.t.tape.grad(r.x)),
        complex_step_gradient([&](auto& v) { return loss(gate, v, w); }, to_double(r.x)), tolerance,
        name + "dx");
    expect_relative(
        layout(q, to_double(r.t.tape.grad(r.w))),
        complex_step_gradient([&](auto& v) { return loss(gate, x, v); }, layout(q, to_double(r.w))),
        tolerance, name + "dw");
    expect_same_bits(to_double(r.t.tape.grad(r.stream)), dy, name + "dstream");
  }
}

TEST(Moe, SameBitsForAnyNumberOfThreads) {
  const Case q{{150, 8, 40, 24}, options(2, false, 1.0, 0.01f)};
  const Values dy = random_values(q.z.T * q.z.F, 9);
  std::vector<Values> first;
  for (int n : {1, 2, 4}) {
    const ThreadCount scope(n);
    MoeRun r(q);
    r.t.seed_grad(r.y, dy);
    r.t.tape.backward(r.t.c);
    const std::vector<Values> now = {to_double(r.y), to_double(r.t.tape.grad(r.x)),
                                     to_double(r.t.tape.grad(r.w)),
                                     to_double(r.t.tape.grad(r.gate))};
    if (n == 1) first = now;
    for (size_t i = 0; i < now.size(); ++i)
      expect_same_bits(now[i], first[i], fmt::format("{} threads, result {}", n, i));
  }
}

// In bfloat16 the gradients of x and w are those of a float32 run on the same values, but for the roundings of
// what is bfloat16.
TEST(Moe, Bfloat16GradientsAreThoseOfFloat32) {
  for (const bool in_first : {false, true}) {
    Case q{{200, 3, 72, 136}, options(2), DType::bf16, in_first};
    MoeRun r(q);
    const Values dy = random_values(q.z.T * q.z.F, 9);
    r.t.seed_grad(r.y, dy);
    r.t.tape.backward(r.t.c);
    Case same = q;
    same.dtype = DType::f32;
    MoeRun f(same, to_double(r.x), to_double(r.w));
    f.t.seed_grad(f.y, dy);
    f.t.tape.backward(f.t.c);
    for (const auto& [name, a, b] : {std::tuple("x", r.x, f.x), {"w", r.w, f.w}}) {
      const Values exact = to_double(f.t.tape.grad(b));
      expect_relative(to_double(r.t.tape.grad(a)), exact, 0x1p-6, name);
    }
  }
}

// Which tokens are dropped follows from their order; the first ones stay.
TEST(Moe, AnOverfullExpertKeepsItsFirstTokens) {
  TestContext t;
  const Tensor x = t.from({1, 1, -1, 1, 1, 1}, {6, 1}, DType::f32),
               w = t.from({1, 0}, {2, 1}, DType::f32);
  const Routing r = route(t.c, x, w, false, options(1, false, 1.0));
  EXPECT_EQ(to_double(r.row), (Values{0, 1, 3, 2, -1, -1}));
  EXPECT_EQ(to_double(r.begin), (Values{0, 3, 4}));
  EXPECT_EQ(to_double(r.token), (Values{0, 1, 3, 2, -1, -1}));
}

TEST(Moe, PlanningTakesTheSameMemory) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    size_t peaks[2];
    for (bool planning : {true, false}) {
      TestContext t(true);
      Arena plan = Arena::planning();
      if (planning) t.c.arena = &plan;
      const Tensor x = t.random({10, 8}, dtype, 1), w = t.random({4, 6, 8}, dtype, 2),
                   gate = t.random({4, 8}, DType::f32, 3), s = t.random({10, 6}, DType::f32, 4);
      const Routing r = route(t.c, x, gate, false, options(2));
      Tensor y = combine(t.c, expert_linear(t.c, dispatch(t.c, x, r), w, r, false, dtype), r, s);
      t.tape.seed(t.c, y);
      t.tape.backward(t.c);
      peaks[planning] = t.c.arena->peak();
    }
    EXPECT_EQ(peaks[0], peaks[1]);
  }
}

TEST(Moe, NamesWhatDoesNotFit) {
  TestContext t;
  const Tensor x = t.random({4, 8}, DType::f32, 1), gate = t.random({3, 8}, DType::f32, 2);
  EXPECT_EQ(error_of([&] { route(t.c, x, gate, false, options(4)); }),
            "[moe] k: expected 1 to 3 experts a token, got 4");
  EXPECT_THROW(route(t.c, x, gate, true, options(1)), Error);
  const Routing r = route(t.c, x, gate, false, options(1));
  EXPECT_THROW(dispatch(t.c, t.random({5, 8}, DType::f32, 2), r), Error);
}

}  // namespace
}  // namespace krait::ops
