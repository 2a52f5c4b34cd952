// mamba3_scan against the double reference: values, and gradients of every input by the complex step; and
// against itself: whole = in pieces = packed, any number of threads.
#include <gtest/gtest.h>

#include <limits>
#include <ostream>

#include "krait/ops/mamba3_scan/mamba3_scan.h"
#include "krait/ops/mamba3_scan/reference.h"
#include "krait/testing/cases.h"
#include "krait/testing/packing.h"

namespace krait::ops {
namespace {

using testing::Complex;
using testing::ComplexValues;
using testing::Values;

struct Case {
  std::string name;
  int64_t B = 2, L = 9, H = 4, P = 3, N = 8, G = 1, R = 1, T = 2;
  bool halves = false, mimo = false, shared_angle = true, z = true, D = true, norm = false;
  bool states = true, strided = false;
  DType dtype = DType::f32;
  std::vector<int64_t> lengths;  // packed: of the sequences, B*L in all
  double dt_mean = 0.3, angle_scale = 1, adt_scale = 0.3;
};
std::ostream& operator<<(std::ostream& out, const Case& k) { return out << k.name; }

constexpr const char* kNames[] = {
    "x", "B",    "C",      "B_bias", "C_bias", "dt",         "adt",      "trap",   "angle", "z",
    "D", "norm", "mimo_x", "mimo_z", "mimo_o", "from angle", "from ssm", "from k", "from v"};

template <class T>
std::vector<std::vector<T>*> fields(Mamba3Reference<T>& r) {
  return {&r.x,      &r.B,        &r.C,      &r.B_bias, &r.C_bias, &r.dt,     &r.adt,
          &r.trap,   &r.angle,    &r.z,      &r.D,      &r.norm,   &r.mimo_x, &r.mimo_z,
          &r.mimo_o, &r.angle_in, &r.ssm_in, &r.k_in,   &r.v_in};
}

struct Given {
  Mamba3Inputs in;
  Mamba3State from, to;
  Packing packing;

  Given(testing::TestContext& t, const Case& k) {
    uint64_t seed = 0;
    const auto random = [&](const Shape& s, double mean, double scale, bool strided = false,
                            DType type = DType::f32) {
      return t.random(s, type, ++seed, {mean, scale, strided});
    };
    const auto [B, L, H, P, N, R] = std::tuple(k.B, k.L, k.H, k.P, k.N, k.R);
    in.x = random({B, L, H * P}, 0, 1, k.strided, k.dtype);
    in.B = random({B, L, R, k.G, N}, 0, 1, false, k.dtype);
    in.C = random({B, L, R, k.G, N}, 0, 1, false, k.dtype);
    in.B_bias = random({H, R, N}, 0.5, 0.5);
    in.C_bias = random({H, R, N}, 0.5, 0.5);
    in.dt = random({B, L, H}, k.dt_mean, k.dt_mean / 4, k.strided);
    in.adt = random({B, L, H}, -2 * k.adt_scale, k.adt_scale / 3, k.strided);
    in.trap = random({B, L, H}, 0, 1, k.strided);
    in.angle = k.shared_angle ? random({B, L, k.T}, 0, k.angle_scale, k.strided)
                              : random({B, L, H, k.T}, 0, k.angle_scale);
    if (k.z) in.z = random({B, L, H * P}, 0, 2, k.strided, k.dtype);
    if (k.D) in.D = random({H}, 0, 1);
    if (k.norm) in.norm = random({H * P}, 1, 0.3);
    if (k.mimo) {
      in.mimo_x = random({H, R, P}, 0.3, 0.5);
      if (k.z) in.mimo_z = random({H, R, P}, 1, 0.5);
      in.mimo_o = random({H, R, P}, 0.3, 0.5);
    }
    in.halves = k.halves;
    int64_t S = B;
    if (!k.lengths.empty()) {
      S = static_cast<int64_t>(k.lengths.size());
      packing = testing::packing_of(t, k.lengths);
    }
    if (!k.states) return;
    from.angle = random({S, H, k.T}, 3, 0.8);
    from.ssm = random({S, H, P, N}, 0, 1);
    from.k = random({S, R, H, N}, 0, 1);
    from.v = random({S, H, P}, 0, 1);
    const auto out = [&](const Tensor& like) {
      const Tensor to_one = t.tensor(like.shape, DType::f32);
      if (packing.n) zero_bytes(to_one);
      return to_one;
    };
    to = {out(from.angle), out(from.ssm), out(from.k), out(from.v)};
  }

  Mamba3Result run(testing::TestContext& t) const {
    return mamba3_scan(t.c, in, packing.n ? &packing : nullptr, from, to);
  }

  std::vector<Tensor> tensors() const {  // in the order of kNames
    return {in.x,      in.B,       in.C,     in.B_bias, in.C_bias, in.dt,     in.adt,
            in.trap,   in.angle,   in.z,     in.D,      in.norm,   in.mimo_x, in.mimo_z,
            in.mimo_o, from.angle, from.ssm, from.k,    from.v};
  }

  template <class T>
  Mamba3Reference<T> reference(const Case& k) const {
    Mamba3Reference<T> r;
    r.tokens = k.B * k.L, r.H = k.H, r.P = k.P, r.N = k.N, r.G = k.G, r.R = k.R, r.angles = k.T;
    r.halves = k.halves, r.shared_angle = k.shared_angle;
    const std::vector<Tensor> all = tensors();
    for (size_t i = 0; i < all.size(); ++i) {
      const Values v = testing::to_double(all[i]);
      fields(r)[i]->assign(v.begin(), v.end());
    }
    testing::set_sequences(r, packing.n ? &packing : nullptr, k.B, k.L);
    r.rows_out = k.states ? static_cast<int64_t>(r.row_out.size()) : 0;
    return r;
  }
};

// y and the states after it: what the cotangents are of.
constexpr const char* kOutputs[] = {"y", "to angle", "to ssm", "to k", "to v"};

struct Outcome {
  std::vector<Values> outputs, grads, cotangents;
};

std::vector<Tensor> outputs(const Mamba3Result& r) {
  return {r.y, r.state.angle, r.state.ssm, r.state.k, r.state.v};
}

Outcome run(const Case& k, bool record) {
  testing::TestContext t(record, size_t{32} << 20);
  const Given given(t, k);
  const Mamba3Result r = given.run(t);
  Outcome o;
  for (const Tensor& out : outputs(r)) o.outputs.push_back(testing::to_double(out));
  if (!record) return o;
  uint64_t seed = 100;
  for (const Tensor& out : outputs(r)) {
    ++seed;
    if (out) t.seed_grad(out, testing::random_values(out.numel(), seed));
    o.cotangents.push_back(testing::to_double(out ? t.tape.grad(out) : Tensor()));
  }
  t.tape.backward(t.c);
  for (const Tensor& x : given.tensors())
    o.grads.push_back(x ? testing::to_double(t.tape.grad(x)) : Values());
  return o;
}

template <class T>
std::vector<std::vector<T>> results(const Mamba3Reference<T>& r) {
  const auto out = r.forward();
  return {out.y, out.angle, out.ssm, out.k, out.v};
}

void expect_same(const Outcome& a, const Outcome& b, const std::string& what) {
  for (size_t i = 0; i < a.outputs.size(); ++i)
    testing::expect_same_bits(a.outputs[i], b.outputs[i], what + ": " + kOutputs[i]);
  for (size_t i = 0; i < a.grads.size() && i < b.grads.size(); ++i)
    testing::expect_same_bits(a.grads[i], b.grads[i], what + ": d" + kNames[i]);
}

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = testing::adder(all);
  for (int64_t L : {0, 1, 2, 9}) add(fmt::format("L{}", L), [&](Case& k) { k.L = L; });
  for (int64_t L : {64, 65, 130})
    add(fmt::format("T13_L{}", L), [&](Case& k) { k.B = k.H = 1, k.P = 2, k.N = 4, k.L = L; });
  for (int64_t P : {1, 5, 17})
    for (int64_t N : {2, 7, 16, 35})
      add(fmt::format("P{}_N{}", P, N), [&](Case& k) {
        k.B = 1, k.L = 4, k.H = 2, k.P = P, k.N = N, k.T = std::max<int64_t>(1, N / 4);
      });
  add("groups2", [](Case& k) { k.G = 2; });
  add("groups3_of_5_heads", [](Case& k) { k.G = 3, k.H = 15, k.L = 3, k.B = 1, k.P = 2; });
  add("heads_of_their_own_angles", [](Case& k) { k.shared_angle = false; });
  add("halves", [](Case& k) { k.halves = true; });
  add("halves_all_turned", [](Case& k) { k.halves = true, k.T = 4; });
  add("adjacent_all_turned", [](Case& k) { k.T = 4; });
  add("no_z", [](Case& k) { k.z = false; });
  add("no_D", [](Case& k) { k.D = false; });
  add("no_states", [](Case& k) { k.states = false; });
  add("norm", [](Case& k) { k.norm = true; });
  add("norm_no_z", [](Case& k) { k.norm = true, k.z = false; });
  add("norm_two_chunks", [](Case& k) { k.norm = true, k.L = 70, k.B = k.H = 1, k.P = 2; });
  for (int64_t R : {1, 2, 4}) {
    const auto mimo = [R](Case& k) { k.R = R, k.mimo = k.halves = true; };
    add(fmt::format("rank{}", R), mimo);
    add(fmt::format("rank{}_groups2_norm", R),
        [&](Case& k) { mimo(k), k.G = 2, k.norm = true, k.L = 4; });
    add(fmt::format("rank{}_one_step", R), [&](Case& k) { mimo(k), k.L = 1; });
    add(fmt::format("rank{}_no_z", R), [&](Case& k) { mimo(k), k.z = false, k.L = 3; });
    add(fmt::format("T13_rank{}_L66", R),
        [&](Case& k) { mimo(k), k.L = 66, k.B = k.H = 1, k.P = 2, k.N = 4; });
  }
  add("T15_strided", [](Case& k) { k.strided = true; });
  add("T25_packed", [](Case& k) { k.lengths = {3, 0, 5, 1, 2, 7}; });
  add("T25_packed_rank2", [](Case& k) { k.lengths = {3, 0, 5, 1, 2, 7}, k.R = 2, k.mimo = true; });
  add("T21_packed_many_chunks", [](Case& k) {
    k.B = 1, k.L = 270, k.H = 1, k.P = 1, k.N = 4, k.T = 1, k.lengths = {70, 65, 0, 130, 5};
  });
  add("packed_without_states", [](Case& k) { k.lengths = {10, 0, 1, 7}, k.states = false; });
  add("angles_wrap", [](Case& k) { k.dt_mean = 3, k.angle_scale = 3, k.L = 30, k.H = 1; });
  add("T12_slow_decay",
      [](Case& k) { k.adt_scale = 1e-3, k.L = 130, k.B = k.H = 1, k.P = 2, k.N = 4; });
  add("decay_underflows", [](Case& k) { k.adt_scale = 60; });
  return all;
}

class Mamba3Scan : public ::testing::TestWithParam<Case> {};

// Gradients are sums of up to a few hundred products. That of adt is a difference of such sums, of the size of
// those in the gradient of dt: its error is one of theirs, however small the decay has made it.
constexpr double kGradientTolerance = 200 * 0x1p-24;
constexpr size_t kDt = 5;

// The bound of values: twice the error of a plain float32 run, and a few roundings: the decay, the turns and the
// gate are a unit in the last place less exact than those of the C library, for all elements of a head alike.
TEST_P(Mamba3Scan, MatchesReference) {
  const Case& k = GetParam();
  const Outcome got = run(k, true);
  expect_same(got, run(k, false), "recorded and unrecorded");
  testing::TestContext t(false, 64);
  const Given given(t, k);
  const auto exact = results(given.reference<double>(k));
  const auto plain = results(given.reference<float>(k));
  for (size_t i = 0; i < exact.size(); ++i) {
    if (i > 0 && !k.states) continue;
    const double error = testing::max_abs_error(got.outputs[i], exact[i]);
    const double of_plain = testing::max_abs_error(testing::to_double(plain[i]), exact[i]);
    const double largest = testing::max_abs(exact[i]);
    EXPECT_LE(error, 2 * of_plain + 4 * testing::rounding(DType::f32) * largest)
        << kOutputs[i] << ": error of the plain float32 run " << of_plain << ", largest value "
        << largest;
  }
  auto numbers = given.reference<double>(k);
  std::vector<Values> exact_grads;
  for (size_t i = 0; i < std::size(kNames); ++i) {
    auto stepped = given.reference<Complex>(k);
    const auto loss = [&](const ComplexValues& x) {
      *fields(stepped)[i] = x;
      const auto r = results(stepped);
      Complex sum = 0;
      for (size_t o = 0; o < r.size(); ++o)
        if (!got.cotangents[o].empty()) sum += testing::dot(r[o], got.cotangents[o]);
      return sum;
    };
    exact_grads.push_back(testing::complex_step_gradient(loss, *fields(numbers)[i]));
  }
  for (size_t i = 0; i < std::size(kNames); ++i) {
    double scale = testing::max_abs(exact_grads[i]);
    if (kNames[i] == std::string("adt"))
      scale = std::max(scale, testing::max_abs(exact_grads[kDt]));
    EXPECT_LE(testing::max_abs_error(got.grads[i], exact_grads[i]),
              kGradientTolerance * scale + std::numeric_limits<float>::min())
        << "d" << kNames[i] << ", largest value " << scale;
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, Mamba3Scan, ::testing::ValuesIn(cases()),
                         [](const auto& the_case) { return the_case.param.name; });

Case large(int64_t R) {
  Case k;
  k.L = 150, k.H = 10, k.P = 20, k.N = 40, k.G = 2, k.T = 9, k.R = R, k.strided = true;
  k.mimo = k.halves = R > 1;
  return k;
}

TEST(Mamba3ScanAlgebra, T16_AnyNumberOfThreads) {
  for (const int64_t R : {1, 3}) {
    Case k = large(R);
    for (const bool packed : {false, true}) {
      if (packed) k.lengths = {70, 30, 0, 1, 199};
      const testing::ThreadCount one(1);
      const Outcome first = run(k, true);
      for (const int n : {1, 2, 4}) {
        const testing::ThreadCount count(n);
        expect_same(run(k, true), first, fmt::format("{} threads", n));
      }
    }
  }
}

TEST(Mamba3ScanAlgebra, Bfloat16IsRoundedOnce) {
  for (const int64_t R : {1, 2}) {
    Case k = large(R);
    k.dtype = DType::bf16;
    const Outcome got = run(k, false);
    testing::TestContext t(false, 64);
    const Given given(t, k);
    const auto exact = results(given.reference<double>(k));
    const auto plain = results(given.reference<float>(k));
    testing::expect_within_twice_plain(got.outputs[0], exact[0], testing::to_double(plain[0]),
                                       DType::bf16, "y");
    testing::expect_within_twice_plain(got.outputs[2], exact[2], testing::to_double(plain[2]),
                                       DType::f32, "ssm");
  }
}

// Tokens [from, to) of what has a time axis.
Given part_of(const Given& whole, int64_t from, int64_t to, testing::TestContext& t) {
  Given part = whole;
  const auto cut = [&](Tensor& x) {
    if (!x) return;
    const Tensor view = x.slice(1, from, to);
    x = t.tensor(view.shape, view.dtype);
    copy_host(view, x);
  };
  for (Tensor* x : {&part.in.x, &part.in.B, &part.in.C, &part.in.dt, &part.in.adt, &part.in.trap,
                    &part.in.angle, &part.in.z})
    cut(*x);
  for (Tensor* x : {&part.to.angle, &part.to.ssm, &part.to.k, &part.to.v})
    *x = t.tensor(x->shape, DType::f32);
  return part;
}

// In pieces, the last of single tokens, from the state that each leaves.
TEST(Mamba3ScanAlgebra, T20_PiecesAndStepsAreTheWhole) {
  for (const int64_t R : {1, 4}) {
    const Case k = large(R);
    testing::TestContext t;
    const Given whole(t, k);
    const Mamba3Result all = whole.run(t);
    Mamba3State state = whole.from;
    const int64_t borders[] = {0, 100, 101, 145, 146, 147, 148, 149, 150};
    for (size_t i = 0; i + 1 < std::size(borders); ++i) {
      Given part = part_of(whole, borders[i], borders[i + 1], t);
      part.from = state;
      if (i == 2) part.to = part.from;  // in place
      const Mamba3Result r = part.run(t);
      testing::expect_relative(testing::to_double(r.y),
                               testing::to_double(all.y.slice(1, borders[i], borders[i + 1])), 1e-5,
                               fmt::format("y from {}", borders[i]));
      state = r.state;
    }
    testing::expect_relative(testing::to_double(state.ssm), testing::to_double(all.state.ssm), 1e-5,
                             "ssm");
    testing::expect_relative(testing::to_double(state.k), testing::to_double(all.state.k), 1e-5,
                             "k");
  }
}

// θ does not drift: after 200,000 equal steps it is where one multiplication puts it.
TEST(Mamba3ScanAlgebra, T12_AnglesKeepTheirPlace) {
  Case k;
  k.B = k.H = k.P = k.T = 1, k.N = 2, k.L = 200000, k.z = k.D = false;
  testing::TestContext t(false, size_t{8} << 20);
  const Given given(t, k);
  for (int64_t i = 0; i < k.L; ++i) {
    set(given.in.angle, i, 0.5);
    set(given.in.dt, i, 0.25);
  }
  set(given.from.angle, 0, 0);
  const Mamba3Result r = given.run(t);
  const double two_pi = 2 * std::numbers::pi;
  const double turns = static_cast<double>(k.L) * 0.125 * std::tanh(0.5);
  // Each step is rounded to 2^-32 of a turn, and tanh to float32: 2^-25 of 0.46, times L / 8.
  EXPECT_NEAR(get(r.state.angle, 0), two_pi * (turns - std::floor(turns)), two_pi * 0.002);
}

TEST(Mamba3ScanChecks, SayWhatIsWrong) {
  testing::TestContext t;
  const Case k;
  const auto message = [&](auto change) {
    Given s(t, k);
    change(s);
    return testing::error_of([&] { s.run(t); });
  };
  EXPECT_EQ(message([](Given& s) { s.in.dt = s.in.dt.slice(2, 0, 3); }),
            "[mamba3_scan] adt: expected (B, L, H) = (2, 9, 3), got (2, 9, 4)");
  EXPECT_NE(message([](Given& s) { s.in.trap = s.in.x; }).find("trap: expected (B, L, H)"),
            std::string::npos);
  EXPECT_NE(message([](Given& s) { s.from.k = {}; }).find("state in: k"), std::string::npos);
  EXPECT_NE(message([](Given& s) { s.in.mimo_x = s.in.B_bias; }).find("all or none"),
            std::string::npos);
}

}  // namespace
}  // namespace krait::ops
