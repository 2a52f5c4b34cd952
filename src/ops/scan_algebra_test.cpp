// selective_scan and ssd against themselves: the same numbers however the tokens are cut, the work is spread, or the
// gradients are asked for.
#include <gtest/gtest.h>

#include "krait/ops/selective_scan/fixture.h"
#include "krait/ops/ssd/fixture.h"

namespace krait::ops {
namespace {

using testing::Values;

// What of each op the tests below are written in.
struct SelectiveScan {
  using Case = ScanCase;
  using Setup = ScanSetup;
  using Outcome = ScanOutcome;
  using Result = ScanResult;
  static constexpr const char* kName = "selective_scan";
  static constexpr auto& kInputs = kScanInputNames;

  static Case of(int64_t heads) {
    Case k;
    k.E = 10 * heads;
    return k;
  }
  static int64_t width(const Case& k) { return k.E; }
  static size_t memory(const Case& k) { return std::max(k.memory, size_t{32} << 20); }
  // In the order of kInputs.
  static std::vector<Tensor*> inputs(Setup& s) {
    return {&s.in.u, &s.in.dt, &s.in.A,       &s.in.B,    &s.in.C,
            &s.in.D, &s.in.z,  &s.in.dt_bias, &s.state_in};
  }
  static Result call(Context& c, const Setup& s, const Tensor& state_in, const Tensor& state_out) {
    return selective_scan(c, s.in, nullptr, state_in, state_out);
  }
  static Outcome run(const Case& k, bool record) { return run_scan(k, record); }
};

struct Ssd {
  using Case = SsdCase;
  using Setup = SsdSetup;
  using Outcome = SsdOutcome;
  using Result = SsdResult;
  static constexpr const char* kName = "ssd";
  static constexpr auto& kInputs = kSsdInputNames;

  static Case of(int64_t heads) {
    Case k;
    k.H = heads;
    return k;
  }
  static int64_t width(const Case& k) { return k.H * k.P; }
  static size_t memory(const Case&) { return size_t{32} << 20; }
  static std::vector<Tensor*> inputs(Setup& s) {
    return {&s.in.x, &s.in.dt, &s.in.A, &s.in.B, &s.in.C, &s.in.D, &s.in.dt_bias, &s.state_in};
  }
  static Result call(Context& c, const Setup& s, const Tensor& state_in, const Tensor& state_out) {
    return ssd(c, s.in, nullptr, state_in, state_out);
  }
  static Outcome run(const Case& k, bool record) { return run_ssd(k, record); }
};

template <class Op>
class ScanAlgebra : public ::testing::Test {};

struct NameOfOp {
  template <class Op>
  static std::string GetName(int) {
    return Op::kName;
  }
};
using Scans = ::testing::Types<SelectiveScan, Ssd>;
TYPED_TEST_SUITE(ScanAlgebra, Scans, NameOfOp);

template <class Op>
typename Op::Case mixed_case() {
  typename Op::Case k = Op::of(10);
  k.B = 2, k.L = 300, k.G = 2, k.states = true, k.strided = true;
  return k;
}

template <class Op>
void expect_same(const typename Op::Outcome& a, const typename Op::Outcome& b,
                 const std::string& what) {
  testing::expect_same_bits(a.y, b.y, what + ": y");
  testing::expect_same_bits(a.state, b.state, what + ": state");
  ASSERT_EQ(a.grads.size(), b.grads.size());
  for (size_t i = 0; i < a.grads.size(); ++i)
    testing::expect_same_bits(a.grads[i], b.grads[i], what + ": d" + Op::kInputs[i]);
}

Values part(const Values& v, int64_t from, int64_t to) {
  return {v.begin() + from, v.begin() + to};
}

// The inputs that have a row for each token, of tokens [from, to) of every batch row.
template <class Op>
typename Op::Setup steps(typename Op::Setup s, int64_t from, int64_t to) {
  for (Tensor* x : Op::inputs(s))
    if (x != &s.state_in && *x && x->rank() > 2) *x = x->slice(1, from, to);
  return s;
}

// The whole scan as calls over [cuts[i], cuts[i+1]), the state handed on; B = 1.
struct InPieces {
  Values y, state;
  std::vector<Values> grads;
};

template <class Op>
InPieces run_in_pieces(const typename Op::Case& k, const std::vector<int64_t>& cuts, bool record) {
  testing::TestContext t(record, Op::memory(k));
  const typename Op::Setup s(t, k);
  Tensor state = s.state_in;
  InPieces out;
  std::vector<Tensor> ys;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    const Tensor next = t.tensor(s.state_in.shape, DType::f32);
    const auto r = Op::call(t.c, steps<Op>(s, cuts[i], cuts[i + 1]), state, next);
    state = r.state;
    ys.push_back(r.y);
    const Values y = testing::to_double(r.y);
    out.y.insert(out.y.end(), y.begin(), y.end());
  }
  out.state = testing::to_double(state);
  if (!record) return out;
  const int64_t width = Op::width(k);
  const Values dy = testing::random_values(k.L * width, 20);
  for (size_t i = 0; i < ys.size(); ++i)
    t.seed_grad(ys[i], part(dy, cuts[i] * width, cuts[i + 1] * width));
  t.seed_grad(state, testing::random_values(state.numel(), 21));
  t.tape.backward(t.c);
  for (const Tensor& x : s.tensors()) out.grads.push_back(testing::to_double(t.tape.grad(x)));
  return out;
}

std::vector<int64_t> one_by_one(int64_t L) {
  std::vector<int64_t> cuts;
  for (int64_t t = 0; t <= L; ++t) cuts.push_back(t);
  return cuts;
}

// Cut at any step, whatever the path of each piece (T20: several tokens onto a state that is not zero;
// T21: chunks begin where the piece begins), the values and gradients stay those of the whole within the
// rounding of float32; the forward pass cut at borders of chunks gives the same bits.
TYPED_TEST(ScanAlgebra, T19_T20_T21_PiecesAreTheWhole) {
  using Op = TypeParam;
  typename Op::Case k = Op::of(3);
  k.L = 300, k.states = true;
  const typename Op::Outcome whole = Op::run(k, true);
  const std::vector<std::vector<int64_t>> all = {
      {0, 128, 300}, {0, 1, 300}, {0, 5, 70, 71, 79, 200, 300}, {0, 299, 300}, one_by_one(k.L)};
  for (size_t i = 0; i < all.size(); ++i) {
    const InPieces cut = run_in_pieces<Op>(k, all[i], true);
    const std::string what = "cut " + std::to_string(i);
    if (i == 0) testing::expect_same_bits(whole.y, cut.y, what);
    testing::expect_relative(cut.y, whole.y, 1e-6, what + ": y");
    testing::expect_relative(cut.state, whole.state, 1e-6, what + ": state");
    for (size_t j = 0; j < cut.grads.size(); ++j)
      testing::expect_relative(cut.grads[j], whole.grads[j], 3e-6, what + ": d" + Op::kInputs[j]);
  }
}

// Where sums of dB and dC would take too much memory, backward on a GPU goes over time in several launches.
TEST(SelectiveScanAlgebra, BackwardInSeveralLaunchesIsThatOfThePieces) {
  ScanCase k;
  k.L = 9000, k.E = 64, k.N = 256, k.states = true, k.memory = size_t{512} << 20;
  const ScanOutcome whole = run_scan(k, true);
  const InPieces cut = run_in_pieces<SelectiveScan>(k, {0, 3000, 6001, 9000}, true);
  for (size_t j = 0; j < cut.grads.size(); ++j)
    testing::expect_relative(cut.grads[j], whole.grads[j], 1e-5,
                             std::string("d") + kScanInputNames[j]);
}

TYPED_TEST(ScanAlgebra, T19_StepsAreTheWholeOver4096) {
  using Op = TypeParam;
  typename Op::Case k = Op::of(2);
  k.L = 4096, k.states = true;
  const InPieces cut = run_in_pieces<Op>(k, one_by_one(k.L), false);
  const typename Op::Outcome whole = Op::run(k, false);
  testing::expect_relative(cut.y, whole.y, 1e-6, "y");
  testing::expect_relative(cut.state, whole.state, 1e-6, "state");
}

TYPED_TEST(ScanAlgebra, T19_TwiceTheSameBits) {
  using Op = TypeParam;
  const auto k = mixed_case<Op>();
  expect_same<Op>(Op::run(k, true), Op::run(k, true), "again");
}

TYPED_TEST(ScanAlgebra, SameBitsForAnyNumberOfThreads) {
  using Op = TypeParam;
  typename Op::Case many = mixed_case<Op>(), packed = Op::of(20), short_ones = mixed_case<Op>();
  many.B = 5, many.L = 70;
  packed.L = 400, packed.states = true, packed.lengths = {3, 170, 0, 1, 226};
  short_ones.L = 4, short_ones.B = 30;
  for (const auto& k : {mixed_case<Op>(), many, packed, short_ones}) {
    std::vector<typename Op::Outcome> runs;
    for (int n : {1, 2, 4}) {
      testing::ThreadCount count(n);
      runs.push_back(Op::run(k, true));
    }
    expect_same<Op>(runs[0], runs[1], "2 threads");
    expect_same<Op>(runs[0], runs[2], "4 threads");
  }
}

// Each sequence of a packed tensor gives the bits it gives alone, and its gradients do not see the others.
TYPED_TEST(ScanAlgebra, T25_PackedIsSeparate) {
  using Op = TypeParam;
  typename Op::Case k = Op::of(3);
  k.L = 300, k.states = true, k.lengths = {70, 0, 1, 129, 8, 92};
  const typename Op::Outcome together = Op::run(k, true);
  testing::TestContext memory;
  const typename Op::Setup inputs(memory, k);
  const int64_t width = Op::width(k), size = inputs.state_in.numel() / inputs.state_in.size(0);
  int64_t begin = 0;
  for (size_t s = 0; s < k.lengths.size(); ++s) {
    const int64_t end = begin + k.lengths[s], row = static_cast<int64_t>(s);
    testing::TestContext t(true);
    typename Op::Setup alone = steps<Op>(inputs, begin, end);
    std::vector<Tensor*> varying;  // null where an input is the same for all tokens
    for (Tensor* x : Op::inputs(alone)) {
      varying.push_back(x != &alone.state_in && x->rank() > 2 ? x : nullptr);
      if (varying.back()) *x = t.from(testing::to_double(*x), x->shape, DType::f32);
    }
    Tensor state_in;
    const auto row_in = static_cast<int64_t>(get(inputs.packing.state_in, row));
    const auto row_out = static_cast<int64_t>(get(inputs.packing.state_out, row));
    if (row_in >= 0) state_in = inputs.state_in.slice(0, row_in, row_in + 1);
    const Tensor state_out = t.tensor(inputs.state_in.slice(0, 0, 1).shape, DType::f32);
    const auto r = Op::call(t.c, alone, state_in, state_out);
    testing::expect_same_bits(part(together.y, begin * width, end * width), testing::to_double(r.y),
                              "y");
    t.seed_grad(r.y, part(together.dy, begin * width, end * width));
    if (row_out >= 0) {
      testing::expect_same_bits(part(together.state, row_out * size, (row_out + 1) * size),
                                testing::to_double(r.state), "state");
      t.seed_grad(r.state, part(together.dstate, row_out * size, (row_out + 1) * size));
    }
    t.tape.backward(t.c);
    for (size_t i = 0; i < varying.size(); ++i) {
      if (!varying[i]) continue;
      const int64_t columns = varying[i]->size(2);
      testing::expect_same_bits(part(together.grads[i], begin * columns, end * columns),
                                testing::to_double(t.tape.grad(*varying[i])),
                                std::string("d") + Op::kInputs[i]);
    }
    begin = end;
  }
}

// Without a tape the state may be updated in place, with several sequences at once.
TYPED_TEST(ScanAlgebra, StateInPlace) {
  using Op = TypeParam;
  for (int64_t L : {1, 5, 100}) {
    typename Op::Case k;
    k.B = 3, k.L = L, k.states = true;
    testing::TestContext t;
    const typename Op::Setup s(t, k);
    const auto apart = s.run(t), in_place = Op::call(t.c, s, s.state_in, s.state_in);
    testing::expect_same_bits(apart.y, in_place.y, "y");
    testing::expect_same_bits(apart.state, in_place.state, "state");
  }
}

// T26: NaN in the states of other rows, and in rows of the state pool that no sequence uses, stays there.
TYPED_TEST(ScanAlgebra, T26_ForeignStatesDoNotLeak) {
  using Op = TypeParam;
  typename Op::Case k;
  k.L = 80, k.states = true, k.lengths = {40, 39, 1};
  testing::TestContext t(true);
  const typename Op::Setup s(t, k);
  set(s.packing.state_in, 2, 1);  // rows 0, none, 1; row 2 is nobody's
  const int64_t used = s.state_in.numel() / 3 * 2;
  for (int64_t i = used; i < s.state_in.numel(); ++i) set(s.state_in, i, std::nan(""));
  const auto r = s.run(t);
  t.seed_grad(r.y, testing::random_values(r.y.numel(), 3));
  t.tape.backward(t.c);
  EXPECT_FALSE(std::isnan(
      testing::dot(testing::to_double(r.y), Values(static_cast<size_t>(r.y.numel()), 1.0))));
  const Values d = testing::to_double(t.tape.grad(s.state_in));
  for (size_t i = 0; i < d.size(); ++i) ASSERT_TRUE(std::isfinite(d[i]));
  for (size_t i = static_cast<size_t>(used); i < d.size(); ++i) ASSERT_EQ(d[i], 0.0);
}

// An input that is no variable changes nothing for the others; a gradient that exists is added to.
TYPED_TEST(ScanAlgebra, T38_GradientsAreOptionalAndAdd) {
  using Op = TypeParam;
  const auto k = mixed_case<Op>();
  const typename Op::Outcome all = Op::run(k, true);
  for (size_t only = 0; only < std::size(Op::kInputs); ++only) {
    testing::TestContext t(true, size_t{8} << 20);
    typename Op::Setup s(t, k);
    const std::vector<Tensor*> inputs = Op::inputs(s);
    for (size_t i = 0; i < inputs.size(); ++i)
      if (i != only) *inputs[i] = inputs[i]->detach();
    const Tensor x = *inputs[only];
    const auto r = s.run(t);
    t.seed_grad(x, Values(static_cast<size_t>(x.numel()), 1.0));
    t.seed_grad(r.y, testing::random_values(r.y.numel(), 20));
    t.seed_grad(r.state, testing::random_values(r.state.numel(), 21));
    t.tape.backward(t.c);
    Values expected = all.grads[only];
    for (double& v : expected) v = static_cast<float>(v) + 1.0f;
    // Adding inside the kernel and after it may round differently by one unit.
    testing::expect_relative(testing::to_double(t.tape.grad(x)), expected, 0x1p-23,
                             Op::kInputs[only]);
  }
}

// A planning arena is asked for exactly what the run takes, and its memory is not touched.
TYPED_TEST(ScanAlgebra, PlanningTakesWhatTheRunTakes) {
  using Op = TypeParam;
  const auto peak_of = [](testing::TestContext& t) {
    const typename Op::Setup s(t, mixed_case<Op>());
    const auto r = s.run(t);
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

TYPED_TEST(ScanAlgebra, ErrorsOfPackingsAreFound) {
  KRAIT_ONLY_ON_CPU("values on a GPU are not looked at");
  using Setup = typename TypeParam::Setup;
  typename TypeParam::Case k;
  k.L = 20, k.states = true, k.lengths = {10, 10};
  const auto refused = [&](auto change) {
    testing::TestContext t;
    Setup s(t, k);
    change(s);
    EXPECT_THROW(s.run(t), Error);
  };
  refused([](Setup& s) { set(s.packing.begin, 2, 21); });
  refused([](Setup& s) { set(s.packing.begin, 0, 1); });
  refused([](Setup& s) { set(s.packing.begin, 1, 30); });
  refused([](Setup& s) { set(s.packing.state_in, 0, 2); });
  refused([](Setup& s) { set(s.packing.state_out, 1, 2); });
  refused([](Setup& s) { s.state_in = s.state_in.slice(1, 0, 2); });
}

}  // namespace
}  // namespace krait::ops
