#include "krait/ops/gated_norm/gated_norm.h"

#include "krait/ops/gated_norm/reference.h"
#include "krait/testing/remade.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

struct Case {
  GateOrder order = GateOrder::gate_first;
  int64_t rows = 1, E = 1, groups = 1;
  bool z = true, b = false;
  DType dtype = DType::f32;
  bool strided = false;
};

std::string describe(const Case& k) {
  return fmt::format("{} rows={} E={} groups={} z={} b={} {} strided={}",
                     k.order == GateOrder::gate_first ? "gate first" : "norm first", k.rows, k.E,
                     k.groups, k.z, k.b, name_of(k.dtype), k.strided);
}

struct GatedNorm {
  Case k;
  TestContext test;
  GatedNormInputs in;
  Tensor y;

  explicit GatedNorm(const Case& c, bool record = false) : k(c), test(record) {
    in.x = test.random({k.rows, k.E}, k.dtype, 1, {.mean = 0.3, .strided = k.strided});
    if (k.z) in.z = test.random({k.rows, k.E}, k.dtype, 2, {.scale = 2, .strided = k.strided});
    in.w = test.random({k.E}, DType::f32, 3, {.mean = 1});
    if (k.b) in.b = test.random({k.E}, DType::f32, 4);
    in.groups = k.groups, in.order = k.order;
  }
  void run() { y = gated_norm(test.c, in); }

  template <class T>
  std::vector<T> reference(const std::vector<std::vector<T>>& v) const {
    return gated_norm_reference<T>(k.E, k.groups, k.order == GateOrder::gate_first, 1e-5, v[0],
                                   v[1], v[2], v[3]);
  }
  std::vector<Tensor> inputs() const { return {in.x, in.z, in.w, in.b}; }
  std::vector<Values> doubles() const {
    std::vector<Values> v;
    for (const Tensor& t : inputs()) v.push_back(to_double(t));
    return v;
  }
  Values plain() const {
    std::vector<std::vector<float>> v;
    for (const Tensor& t : inputs()) v.push_back(to_float(t));
    return to_double(reference(v));
  }
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const GateOrder order : {GateOrder::gate_first, GateOrder::norm_first}) {
    for (const int64_t E : {1, 2, 31, 97, 257, 1025})
      for (const int64_t rows : {0, 1, 2, 31})
        all.push_back({.order = order, .rows = rows, .E = E, .b = rows % 2 == 1});
    all.push_back({.order = order, .rows = 1, .E = 8201});  // more than the CPU keeps of a row
    for (const int64_t groups : {2, 3, 8})
      all.push_back(
          {.order = order, .rows = 70, .E = groups * 20, .groups = groups, .strided = true});
    all.push_back({.order = order, .rows = 9, .E = 96, .groups = 2, .z = false, .b = true});
    all.push_back(
        {.order = order, .rows = 33, .E = 96, .groups = 3, .dtype = DType::bf16, .strided = true});
  }
  return all;
}

TEST(GatedNorm, T6_T7_MatchesDouble) {
  for (const Case& k : cases()) {
    SCOPED_TRACE(describe(k));
    GatedNorm n(k);
    n.run();
    expect_within_twice_plain(to_double(n.y), n.reference(n.doubles()), n.plain(), k.dtype, "y");
  }
}

// The gate is a unit in the last place less exact than the C library's, and a gradient sums over rows.
TEST(GatedNorm, T6_T7_GradientsAreTheComplexStep) {
  for (const Case& k : cases()) {
    // Of one or two channels, dx is the difference of nearly equal numbers: all rounding.
    if (k.rows * k.E > 4000 || k.E / k.groups < 3) continue;
    SCOPED_TRACE(describe(k));
    GatedNorm n(k, true);
    n.run();
    n.test.seed_grad(n.y, random_values(n.y.numel(), 11));
    const Values dy = to_double(n.test.tape.grad(n.y));
    n.test.tape.backward(n.test.c);
    const std::vector<Values> values = n.doubles();
    for (size_t i = 0; i < values.size(); ++i) {
      if (!n.inputs()[i]) continue;
      // A row of dx and dz comes from that row alone.
      const int64_t pieces = i < 2 ? k.rows : 1;
      const auto piece = [&](const Values& v, int64_t r) {
        const auto begin = v.begin() + (v.empty() ? 0 : r * k.E);
        return i < 2 && !v.empty() ? Values(begin, begin + k.E) : v;
      };
      Values numeric;
      for (int64_t r = 0; r < pieces; ++r) {
        const Values dy_piece = piece(dy, r);
        std::vector<ComplexValues> z;
        for (size_t j = 0; j < values.size(); ++j)
          z.push_back(to_complex(j < 2 ? piece(values[j], r) : values[j]));
        const auto loss = [&](const ComplexValues& v) {
          z[i] = v;
          return dot(n.reference(z), dy_piece);
        };
        const Values of_piece =
            complex_step_gradient(loss, i < 2 ? piece(values[i], r) : values[i]);
        numeric.insert(numeric.end(), of_piece.begin(), of_piece.end());
      }
      const double tolerance =
          8 * rounding(DType::f32) * std::sqrt(static_cast<double>(k.rows) + 1) +
          rounding(n.inputs()[i].dtype);
      expect_relative(to_double(n.test.tape.grad(n.inputs()[i])), numeric, tolerance,
                      std::string("d") + "xzwb"[i]);
    }
  }
}

TEST(GatedNorm, SameBitsForAnyNumberOfThreadsAndGradientsAdd) {
  const Case k{.rows = 200, .E = 96, .groups = 2, .b = true};
  const auto run = [&](int threads, bool twice) {
    ThreadCount count(threads);
    GatedNorm n(k, true);
    n.run();
    if (twice)
      for (const Tensor& t : n.inputs())
        n.test.seed_grad(t, Values(static_cast<size_t>(t.numel()), 1.0));
    n.test.seed_grad(n.y, random_values(n.y.numel(), 11));
    n.test.tape.backward(n.test.c);
    std::vector<Values> out = {to_double(n.y)};
    for (const Tensor& t : n.inputs()) out.push_back(to_double(n.test.tape.grad(t)));
    return out;
  };
  const std::vector<Values> one = run(1, false);
  for (const int threads : {2, 4}) {
    const std::vector<Values> many = run(threads, false);
    for (size_t i = 0; i < one.size(); ++i) expect_same_bits(one[i], many[i], "threads");
  }
  const std::vector<Values> added = run(1, true);
  for (size_t i = 1; i < one.size(); ++i) {
    Values expected = one[i];
    for (double& v : expected) v += 1;
    expect_relative(added[i], expected, 1e-6, "added");
  }
}

TEST(GatedNorm, SaysWhatWasExpected) {
  const auto message = [](auto change) {
    GatedNorm n({.rows = 2, .E = 10});
    change(n);
    return error_of([&] { n.run(); });
  };
  EXPECT_EQ(message([](GatedNorm& n) { n.in.groups = 3; }),
            "[gated_norm] 10 channels cannot be cut into 3 groups");
  EXPECT_NE(message([](GatedNorm& n) { n.in.z = n.test.random({2, 9}, DType::f32, 1); }), "");
  EXPECT_NE(message([](GatedNorm& n) { n.in.w = n.test.random({9}, DType::f32, 1); }), "");
}

TEST(GatedNorm, ALayerThatWritesYAgainHasTheSameGradients) {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const GateOrder order : {GateOrder::gate_first, GateOrder::norm_first})
      for (const int64_t E : {96, 130, 3072, 4608, 10400}) {  // the last has no place in registers
        TestContext t;
        Tensor x = t.random({33, E}, dtype, 1), z = t.random({33, E}, dtype, 2),
               w = t.random({E}, DType::f32, 3);
        expect_same_gradients_where_y_is_remade(
            {&x, &z, &w}, t.random({16, E}, dtype, 4), [&](Context& c, bool remake_y) {
              return gated_norm(c, {x, z, w, {}, 2, order, 1e-5f, remake_y});
            });
      }
}

}  // namespace
}  // namespace krait::ops
