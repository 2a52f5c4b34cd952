// selective_scan against itself: the same numbers however the tokens are cut, the work is spread, or the
// gradients are asked for.
#include <gtest/gtest.h>

#include "krait/ops/selective_scan/fixture.h"

namespace krait::ops {
namespace {

using testing::Values;

ScanCase mixed_case() {
  ScanCase k;
  k.B = 2, k.L = 300, k.E = 40, k.G = 2, k.states = true, k.strided = true;
  return k;
}

void expect_same(const ScanOutcome& a, const ScanOutcome& b, const std::string& what) {
  testing::expect_same_bits(a.y, b.y, what + ": y");
  testing::expect_same_bits(a.state, b.state, what + ": state");
  ASSERT_EQ(a.grads.size(), b.grads.size());
  for (size_t i = 0; i < a.grads.size(); ++i)
    testing::expect_same_bits(a.grads[i], b.grads[i], what + ": d" + kScanInputNames[i]);
}

// Tokens [from, to) of every batch row.
Tensor steps(const Tensor& t, int64_t from, int64_t to) {
  return t.rank() > 2 ? t.slice(1, from, to) : t;
}

// The whole scan as calls over [cuts[i], cuts[i+1]), the state handed on; B = 1.
struct InPieces {
  Values y, state;
  std::vector<Values> grads;
};

InPieces run_in_pieces(const ScanCase& k, const std::vector<int64_t>& cuts, bool record) {
  testing::TestContext t(record, std::max(k.memory, size_t{8} << 20));
  const ScanSetup s(t, k);
  Tensor state = s.state_in;
  InPieces out;
  std::vector<Tensor> ys;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    ScanInputs in = s.in;
    for (Tensor* x : {&in.u, &in.dt, &in.B, &in.C, &in.z})
      if (*x) *x = steps(*x, cuts[i], cuts[i + 1]);
    const Tensor next = t.tensor(s.state_in.shape, DType::f32);
    const ScanResult r = selective_scan(t.c, in, nullptr, state, next);
    state = r.state;
    ys.push_back(r.y);
    const Values y = testing::to_double(r.y);
    out.y.insert(out.y.end(), y.begin(), y.end());
  }
  out.state = testing::to_double(state);
  if (!record) return out;
  const Values dy = testing::random_values(k.L * k.E, 20);
  for (size_t i = 0; i < ys.size(); ++i)
    t.seed_grad(ys[i], Values(dy.begin() + cuts[i] * k.E, dy.begin() + cuts[i + 1] * k.E));
  t.seed_grad(state, testing::random_values(state.numel(), 21));
  t.tape.backward(t.c);
  for (const Tensor& x : s.tensors()) out.grads.push_back(testing::to_double(t.tape.grad(x)));
  return out;
}

// Cut at any step, whatever the path of each piece (T20: several tokens onto a state that is not zero;
// T21: chunks begin where the piece begins), the values and gradients stay those of the whole within the
// rounding of float32; the forward pass cut at borders of chunks gives the same bits.
TEST(SelectiveScanAlgebra, T19_T20_T21_PiecesAreTheWhole) {
  ScanCase k;
  k.L = 300, k.E = 24, k.states = true;
  const ScanOutcome whole = run_scan(k, true);
  std::vector<std::vector<int64_t>> all = {
      {0, 128, 300}, {0, 1, 300}, {0, 5, 70, 71, 79, 200, 300}, {0, 299, 300}};
  std::vector<int64_t> one_by_one;
  for (int64_t t = 0; t <= k.L; ++t) one_by_one.push_back(t);
  all.push_back(one_by_one);
  for (size_t i = 0; i < all.size(); ++i) {
    const InPieces cut = run_in_pieces(k, all[i], true);
    const std::string what = "cut " + std::to_string(i);
    if (i == 0) testing::expect_same_bits(whole.y, cut.y, what);
    testing::expect_relative(cut.y, whole.y, 1e-6, what + ": y");
    testing::expect_relative(cut.state, whole.state, 1e-6, what + ": state");
    for (size_t j = 0; j < cut.grads.size(); ++j)
      testing::expect_relative(cut.grads[j], whole.grads[j], 3e-6,
                               what + ": d" + kScanInputNames[j]);
  }
}

// Where sums of dB and dC would take too much memory, backward on a GPU goes over time in several launches.
TEST(SelectiveScanAlgebra, BackwardInSeveralLaunchesIsThatOfThePieces) {
  ScanCase k;
  k.L = 9000, k.E = 64, k.N = 256, k.states = true, k.memory = size_t{512} << 20;
  const ScanOutcome whole = run_scan(k, true);
  const InPieces cut = run_in_pieces(k, {0, 3000, 6001, 9000}, true);
  for (size_t j = 0; j < cut.grads.size(); ++j)
    testing::expect_relative(cut.grads[j], whole.grads[j], 1e-5,
                             std::string("d") + kScanInputNames[j]);
}

TEST(SelectiveScanAlgebra, T19_StepsAreTheWholeOver4096) {
  ScanCase k;
  k.L = 4096, k.E = 16, k.states = true;
  std::vector<int64_t> cuts;
  for (int64_t t = 0; t <= k.L; ++t) cuts.push_back(t);
  const InPieces steps_y = run_in_pieces(k, cuts, false);
  const ScanOutcome whole = run_scan(k, false);
  testing::expect_relative(steps_y.y, whole.y, 1e-6, "y");
  testing::expect_relative(steps_y.state, whole.state, 1e-6, "state");
}

TEST(SelectiveScanAlgebra, T19_TwiceTheSameBits) {
  const ScanCase k = mixed_case();
  expect_same(run_scan(k, true), run_scan(k, true), "again");
}

TEST(SelectiveScanAlgebra, SameBitsForAnyNumberOfThreads) {
  ScanCase many = mixed_case();
  many.B = 5, many.L = 70, many.E = 20;
  ScanCase packed;
  packed.E = 300, packed.L = 400, packed.states = true, packed.lengths = {3, 170, 0, 1, 226};
  ScanCase short_ones = mixed_case();
  short_ones.L = 4, short_ones.B = 30;
  for (const ScanCase& k : {mixed_case(), many, packed, short_ones}) {
    std::vector<ScanOutcome> runs;
    for (int n : {1, 2, 4}) {
      testing::ThreadCount count(n);
      runs.push_back(run_scan(k, true));
    }
    expect_same(runs[0], runs[1], "2 threads");
    expect_same(runs[0], runs[2], "4 threads");
  }
}

// Each sequence of a packed tensor gives the bits it gives alone, and its gradients do not see the others.
TEST(SelectiveScanAlgebra, T25_PackedIsSeparate) {
  ScanCase k;
  k.E = 20, k.L = 300, k.states = true, k.lengths = {70, 0, 1, 129, 8, 92};
  const ScanOutcome together = run_scan(k, true);
  testing::TestContext memory;
  const ScanSetup inputs(memory, k);
  int64_t begin = 0;
  const auto n = static_cast<int64_t>(k.lengths.size());
  for (int64_t s = 0; s < n; ++s) {
    const int64_t L = k.lengths[static_cast<size_t>(s)];
    testing::TestContext t(true);
    ScanInputs in = inputs.in;
    for (Tensor* x : {&in.u, &in.dt, &in.B, &in.C, &in.z}) {
      const Tensor part = steps(*x, begin, begin + L);
      *x = t.from(testing::to_double(part), part.shape, DType::f32);
    }
    Tensor state_in;
    const auto row_in = static_cast<int64_t>(get(inputs.packing.state_in, s));
    const auto row_out = static_cast<int64_t>(get(inputs.packing.state_out, s));
    if (row_in >= 0) state_in = inputs.state_in.slice(0, row_in, row_in + 1);
    const Tensor state_out = t.tensor({1, k.E, k.N}, DType::f32);
    const ScanResult r = selective_scan(t.c, in, nullptr, state_in, state_out);
    const auto part = [](const Values& v, int64_t from, int64_t to) {
      return Values(v.begin() + from, v.begin() + to);
    };
    testing::expect_same_bits(part(together.y, begin * k.E, (begin + L) * k.E),
                              testing::to_double(r.y), "y");
    t.seed_grad(r.y, part(together.dy, begin * k.E, (begin + L) * k.E));
    if (row_out >= 0) {
      const int64_t size = k.E * k.N;
      testing::expect_same_bits(part(together.state, row_out * size, (row_out + 1) * size),
                                testing::to_double(r.state), "state");
      t.seed_grad(r.state, part(together.dstate, row_out * size, (row_out + 1) * size));
    }
    t.tape.backward(t.c);
    const Tensor alone[] = {in.u, in.dt, {}, in.B, in.C, {}, in.z};
    for (size_t i = 0; i < std::size(alone); ++i) {
      if (!alone[i]) continue;
      const int64_t width = alone[i].size(2);
      testing::expect_same_bits(part(together.grads[i], begin * width, (begin + L) * width),
                                testing::to_double(t.tape.grad(alone[i])),
                                std::string("d") + kScanInputNames[i]);
    }
    begin += L;
  }
}

// Without a tape the state may be updated in place, with several sequences at once.
TEST(SelectiveScanAlgebra, StateInPlace) {
  for (int64_t L : {1, 5, 100}) {
    ScanCase k;
    k.B = 3, k.L = L, k.states = true;
    testing::TestContext t;
    const ScanSetup s(t, k);
    const ScanResult apart = s.run(t);
    const ScanResult in_place = selective_scan(t.c, s.in, nullptr, s.state_in, s.state_in);
    testing::expect_same_bits(apart.y, in_place.y, "y");
    testing::expect_same_bits(apart.state, in_place.state, "state");
  }
}

// T26: NaN in the states of other rows, and in rows of the state pool that no sequence uses, stays there.
TEST(SelectiveScanAlgebra, T26_ForeignStatesDoNotLeak) {
  ScanCase k;
  k.L = 80, k.states = true, k.lengths = {40, 39, 1};
  testing::TestContext t(true);
  const ScanSetup s(t, k);
  set(s.packing.state_in, 2, 1);  // rows 0, none, 1; row 2 is nobody's
  for (int64_t i = 2 * k.E * k.N; i < s.state_in.numel(); ++i) set(s.state_in, i, std::nan(""));
  const ScanResult r = s.run(t);
  t.seed_grad(r.y, testing::random_values(r.y.numel(), 3));
  t.tape.backward(t.c);
  EXPECT_FALSE(std::isnan(
      testing::dot(testing::to_double(r.y), Values(static_cast<size_t>(r.y.numel()), 1.0))));
  const Values d = testing::to_double(t.tape.grad(s.state_in));
  for (size_t i = 0; i < d.size(); ++i) ASSERT_TRUE(std::isfinite(d[i]));
  for (size_t i = static_cast<size_t>(2 * k.E * k.N); i < d.size(); ++i) ASSERT_EQ(d[i], 0.0);
}

// An input that is no variable changes nothing for the others; a gradient that exists is added to.
TEST(SelectiveScanAlgebra, T38_GradientsAreOptionalAndAdd) {
  ScanCase k = mixed_case();
  const ScanOutcome all = run_scan(k, true);
  for (size_t only = 0; only < std::size(kScanInputNames); ++only) {
    testing::TestContext t(true, size_t{8} << 20);
    ScanSetup s(t, k);
    Tensor* inputs[] = {&s.in.u, &s.in.dt, &s.in.A,       &s.in.B,    &s.in.C,
                        &s.in.D, &s.in.z,  &s.in.dt_bias, &s.state_in};
    for (size_t i = 0; i < std::size(inputs); ++i)
      if (i != only) *inputs[i] = inputs[i]->detach();
    const Tensor x = *inputs[only];
    const ScanResult r = s.run(t);
    t.seed_grad(x, Values(static_cast<size_t>(x.numel()), 1.0));
    t.seed_grad(r.y, testing::random_values(r.y.numel(), 20));
    t.seed_grad(r.state, testing::random_values(r.state.numel(), 21));
    t.tape.backward(t.c);
    Values expected = all.grads[only];
    for (double& v : expected) v = static_cast<float>(v) + 1.0f;
    // Adding inside the kernel and after it may round differently by one unit.
    testing::expect_relative(testing::to_double(t.tape.grad(x)), expected, 0x1p-23,
                             kScanInputNames[only]);
  }
}

// A planning arena is asked for exactly what the run takes, and its memory is not touched.
TEST(SelectiveScanAlgebra, PlanningTakesWhatTheRunTakes) {
  const auto peak_of = [](testing::TestContext& t) {
    const ScanSetup s(t, mixed_case());
    const ScanResult r = s.run(t);
    t.tape.grad_into(t.c, r.y);
    t.tape.grad_into(t.c, r.state);
    t.tape.backward(t.c);
    return t.c.arena->peak();
  };
  testing::TestContext run(true), plan(true);
  Arena nothing = Arena::planning();
  plan.c.arena = &nothing;
  EXPECT_EQ(peak_of(plan), peak_of(run));
}

// Blocks of 64 and 96 channels sum over n in the same order in both passes.
TEST(SelectiveScanAlgebra, BackwardMakesTheBitsOfYAgain) {
  for (const int64_t E : {96, 192}) {
    ScanCase k;
    k.B = 45, k.L = 70, k.E = E, k.dtype = k.dtype_BC = DType::bf16, k.memory = size_t{256} << 20;
    const ScanOutcome o = run_scan(k, true);
    testing::expect_same_bits(o.y_after, o.y, std::to_string(E) + " channels");
  }
}

TEST(SelectiveScanErrors, SayWhatWasExpected) {
  ScanCase k;
  k.B = 2, k.L = 8;
  testing::TestContext t;
  const ScanSetup s(t, k);
  const auto message = [&](auto change) -> std::string {
    ScanInputs in = s.in;
    change(in);
    try {
      selective_scan(t.c, in);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(message([&](ScanInputs& in) {
              in.dt = t.random({2, 8, 7}, DType::f32, 1);
            }),
            "[selective_scan] dt: expected (B, L, E) = (2, 8, 16), got (2, 8, 7)");
  EXPECT_EQ(message([&](ScanInputs& in) {
              in.A = t.random({16, 16}, DType::bf16, 1);
            }),
            "[selective_scan] A: expected float32, got bfloat16");
  EXPECT_EQ(message([&](ScanInputs& in) {
              in.B = in.C = t.random({2, 8, 3, 16}, DType::f32, 1);
            }),
            "[selective_scan] 16 channels cannot be cut into 3 groups of B and C");
  EXPECT_NE(message([&](ScanInputs& in) { in.z = t.random({2, 8, 16}, DType::f16, 1); }), "");
}

TEST(SelectiveScanErrors, PackingIsChecked) {
  KRAIT_ONLY_ON_CPU("values on a GPU are not looked at");
  ScanCase k;
  k.L = 20, k.states = true, k.lengths = {10, 10};
  const auto refused = [&](auto change) {
    testing::TestContext t;
    ScanSetup s(t, k);
    change(s);
    EXPECT_THROW(s.run(t), Error);
  };
  refused([](ScanSetup& s) { set(s.packing.begin, 2, 21); });
  refused([](ScanSetup& s) { set(s.packing.begin, 0, 1); });
  refused([](ScanSetup& s) { set(s.packing.begin, 1, 30); });
  refused([](ScanSetup& s) { set(s.packing.state_in, 0, 2); });
  refused([](ScanSetup& s) { set(s.packing.state_out, 1, 2); });
  refused([](ScanSetup& s) { s.state_in = s.state_in.slice(1, 0, 3); });
}

}  // namespace
}  // namespace krait::ops
