// ssd against the double reference: values, and gradients of every input.
#include <gtest/gtest.h>

#include "krait/autograd/segment.h"
#include "krait/base/isa.h"
#include "krait/ops/ssd/fixture.h"
#include "krait/testing/adjoint.h"
#include "krait/testing/cases.h"

namespace krait::ops {
namespace {

using testing::Values;

std::vector<SsdCase> cases() {
  std::vector<SsdCase> all;
  const auto add = testing::adder(all);
  for (int64_t L : {0, 1, 2, 8, 9, 31, 64, 65, 97, 128, 257, 1025})
    add(fmt::format("L{}", L), [&](SsdCase& k) { k.L = L, k.states = true, k.B = 2; });
  for (int64_t P : {1, 7, 16, 64})
    for (int64_t N : {1, 4, 17, 128})
      add(fmt::format("P{}_N{}", P, N),
          [&](SsdCase& k) { k.P = P, k.N = N, k.H = 2, k.states = true, k.L = 70; });
  add("N256_P80", [](SsdCase& k) { k.N = 256, k.P = 80, k.H = 1, k.L = 67, k.states = true; });
  add("H17_sets_of_heads", [](SsdCase& k) { k.H = 17, k.L = 66; });
  add("step_P5_N17", [](SsdCase& k) { k.P = 5, k.N = 17, k.L = 3, k.states = true; });
  add("T8_groups2_of_6", [](SsdCase& k) { k.G = 2, k.H = 6, k.B = 2; });
  add("T8_groups3_of_9_strided", [](SsdCase& k) { k.G = 3, k.H = 9, k.strided = true; });
  add("T8_groups3_step", [](SsdCase& k) { k.G = 3, k.H = 6, k.L = 4, k.states = true; });
  add("T8_a_group_a_head", [](SsdCase& k) { k.G = 5, k.H = 5; });
  add("T38_no_D", [](SsdCase& k) { k.D = false; });
  add("T38_no_bias", [](SsdCase& k) { k.bias = false; });
  add("T38_bare", [](SsdCase& k) {
    k.D = k.bias = k.softplus = k.a_is_log = false, k.dt_mean = 0.3, k.dt_scale = 0.05;
  });
  add("D_per_channel", [](SsdCase& k) { k.D_per_channel = true; });
  add("D_per_channel_step", [](SsdCase& k) { k.D_per_channel = true, k.L = 5; });
  add("T4_dt_limits", [](SsdCase& k) { k.dt_min = 0.2f, k.dt_max = 0.6f, k.states = true; });
  add("T4_dt_limits_step", [](SsdCase& k) { k.dt_min = 0.2f, k.dt_max = 0.6f, k.L = 6; });
  add("T5_no_softplus", [](SsdCase& k) { k.softplus = false, k.dt_mean = 0.3, k.dt_scale = 0.05; });
  add("T11_A_given", [](SsdCase& k) { k.a_is_log = false; });
  add("T15_strided", [](SsdCase& k) { k.strided = true, k.B = 3; });
  add("T13_tail_of_chunk", [](SsdCase& k) { k.L = 3 * 64 + 5, k.states = true; });
  add("T12_slow_decay_many_chunks", [](SsdCase& k) {
    k.L = 400, k.A_mean = -6, k.A_scale = 0.3, k.dt_mean = -4, k.states = true;
  });
  add("T12_slow_decay_thousands_of_tokens", [](SsdCase& k) {  // 1 - 2e-5 a token
    k.L = 4000, k.A_mean = -7, k.A_scale = 0.3, k.dt_mean = -4, k.states = true;
  });
  add("T25_packed", [](SsdCase& k) {
    k.B = 3, k.L = 100, k.states = true, k.lengths = {5, 0, 130, 1, 63, 1, 0, 8, 64, 28};
  });
  add("T21_packed_three_chunks_each", [](SsdCase& k) {
    k.B = 1, k.L = 600, k.states = true, k.lengths = {150, 200, 101, 149};
  });
  add("packed_without_states", [](SsdCase& k) { k.B = 2, k.L = 50, k.lengths = {30, 0, 1, 69}; });
  add("dt_huge", [](SsdCase& k) { k.dt_mean = 25, k.dt_scale = 5; });
  add("dt_very_negative", [](SsdCase& k) { k.dt_mean = -60, k.dt_scale = 30, k.states = true; });
  add("dt_of_all_sizes", [](SsdCase& k) { k.dt_mean = -2, k.dt_scale = 6, k.states = true; });
  add("decay_underflows", [](SsdCase& k) { k.A_mean = 6, k.A_scale = 2, k.states = true; });
  add("A_beyond_any_exponent", [](SsdCase& k) { k.A_mean = 60, k.A_scale = 5, k.dt_mean = 3; });
  for (int64_t L : {5, 130}) {
    add(fmt::format("bf16_L{}", L), [&](SsdCase& k) { k.dtype = DType::bf16, k.L = L; });
    add(fmt::format("bf16_all_L{}", L), [&](SsdCase& k) {
      k.dtype = k.dtype_BC = DType::bf16, k.L = L, k.strided = k.states = true;
    });
  }
  for (const SsdCase& size : {SsdCase{.L = 64, .P = 64, .N = 128},
                              {.L = 9, .P = 16, .N = 16},
                              {.L = 150, .P = 80, .N = 48},
                              {.L = 70, .P = 32, .N = 256},
                              {.L = 1100, .P = 16, .N = 32}})
    add(fmt::format("bf16_matrices_L{}_P{}_N{}", size.L, size.P, size.N), [&](SsdCase& k) {
      k.dtype = k.dtype_BC = DType::bf16, k.states = true;
      k.L = size.L, k.P = size.P, k.N = size.N;
    });
  add("bf16_matrices_packed", [](SsdCase& k) {
    k.dtype = k.dtype_BC = DType::bf16, k.states = true, k.P = 32, k.G = 2, k.H = 4;
    k.L = 150, k.B = 2, k.lengths = {5, 0, 130, 1, 63, 101}, k.D_per_channel = true;
  });
  // Longer than what a block of a GPU walks through, with heads of two slices.
  add("bf16_matrices_packed_in_pieces", [](SsdCase& k) {
    k.dtype = k.dtype_BC = DType::bf16, k.states = true, k.P = 80, k.N = 32;
    k.lengths = {700, 5, 0, 1100, 64}, k.L = 1869;
  });
  // So many chunks that a block takes nine heads one after the other.
  add("bf16_matrices_nine_heads_a_block", [](SsdCase& k) {
    k.dtype = k.dtype_BC = DType::bf16, k.H = 17, k.P = k.N = 16;
    k.lengths.assign(256, 9), k.L = 2304;
  });
  return all;
}

class Ssd : public ::testing::TestWithParam<SsdCase> {};

// A number, and the sum of the magnitudes of the terms it is made of.
struct Magnitude {
  double v = 0, m = 0;
  Magnitude() = default;
  Magnitude(double x) : v(x), m(std::abs(x)) {}
  Magnitude(double x, double of_terms) : v(x), m(of_terms) {}
  Magnitude& operator+=(const Magnitude& b) { return v += b.v, m += b.m, *this; }
  Magnitude& operator*=(const Magnitude& b) { return v *= b.v, m *= b.m, *this; }
  friend Magnitude operator+(Magnitude a, const Magnitude& b) { return a += b; }
  friend Magnitude operator*(Magnitude a, const Magnitude& b) { return a *= b; }
  friend Magnitude operator-(const Magnitude& a) { return {-a.v, a.m}; }
  friend Magnitude operator/(const Magnitude& a, const Magnitude& b) {
    return {a.v / b.v, a.m / std::abs(b.v)};
  }
  friend bool operator<(const Magnitude& a, double b) { return a.v < b; }
  friend bool operator>(const Magnitude& a, double b) { return a.v > b; }
  friend Magnitude exp(const Magnitude& a) { return std::exp(a.v); }
  friend Magnitude log1p(const Magnitude& a) { return std::log1p(a.v); }
};

// Whether this CPU multiplies pairs of bfloat16 in ssd.
bool cpu_pairs() { return isa() == Isa::avx512 && __builtin_cpu_supports("avx512bf16"); }

// Products of bfloat16 operands on a GPU or such a CPU (see ssd.h) round the operands that are not inputs. A term of a result
// goes through so many of those roundings:
//   state, dstate_in  1   Δ f x, and e dy, as they come into the state and its gradient
//   y, dx, dB, dC     2   the above, and the state itself; within a chunk only D G Δ, D G, Σ D K Δ
//   ddt, dA, ddt_bias 4   the state and its gradient in one product, Σ dS S
constexpr int kRoundings[] = {2, 4, 4, 2, 2, 0, 4, 1};  // in the order of kSsdInputNames

// What that, and the rounding of the result to its dtype, may be of each element. Beside it the decays there:
// differences of sums of logarithms below 128, each right to 2^-24 of itself, so to 2^-16 a chunk.
Values allowance(const Values& exact, const std::vector<Magnitude>& terms, int roundings,
                 DType dtype) {
  const double u = testing::rounding(DType::bf16);
  const double of_terms = std::pow(1 + u, roundings) - 1 + (roundings > 0 ? 0x1p-14 : 0);
  Values v(exact.size());
  for (size_t i = 0; i < v.size(); ++i)
    v[i] = of_terms * terms[i].m +
           (dtype == DType::bf16 ? u * (std::abs(exact[i]) + of_terms * terms[i].m) : 0);
  return v;
}

// The bound: twice the error of a plain float32 run, and beside it the rounding of the result to its dtype
// and 10 roundings of float32: the errors that Softplus and Exp state (simd_math.h: 1.5e-7 and 1.2e-7; 3e-7 without fused products), common
// to all of a head, where the plain run has the C library's.
double bound(double plain, double largest, DType dtype) {
  const double own = dtype == DType::f32 ? 0 : testing::rounding(dtype);
  return 2 * plain + (own + 10 * testing::rounding(DType::f32)) * largest;
}

// The largest errors of one tensor over the trials of a case, what is allowed an element taken off.
struct Errors {
  double got = 0, plain = 0, largest = 0;
  void add(const Values& got_values, const Values& exact, const Values& plain_values,
           const Values& allowed = {}) {
    Values beyond = got_values;
    for (size_t i = 0; i < allowed.size() && i < beyond.size(); ++i) {
      const double error = beyond[i] - exact[i];
      beyond[i] = exact[i] + std::copysign(std::max(std::abs(error) - allowed[i], 0.0), error);
    }
    got = std::max(got, testing::max_abs_error(beyond, exact));
    plain = std::max(plain, testing::max_abs_error(plain_values, exact));
    largest = std::max(largest, testing::max_abs(exact));
  }
};

// Values, last states and all gradients from random cotangents on both, with and without a tape. The error
// of a plain run over a few heads is a matter of luck: each case is tried several times, and the worst
// error is held against twice the worst error of the plain runs.
TEST_P(Ssd, MatchesReference) {
  SsdCase k = GetParam();
  Errors y_error, state_error;
  std::vector<Errors> grad_errors(std::size(kSsdInputNames));
  std::vector<DType> dtypes(std::size(kSsdInputNames));
  const bool matrix_units =
      k.dtype == DType::bf16 && k.dtype_BC == DType::bf16 &&
      (testing::test_device().type == Device::cuda ? k.P % 16 == 0 && k.N % 16 == 0 : cpu_pairs());
  const int64_t trials = std::clamp<int64_t>(200000 / (k.B * k.L * k.P * k.N + 1), 1, 8);
  for (int64_t trial = 0; trial < trials; ++trial) {
    k.seed = static_cast<uint64_t>(trial);
    const SsdOutcome got = run_ssd(k, true);
    testing::expect_same_bits(run_ssd(k, false).y, got.y, "recorded and unrecorded");
    testing::TestContext t(false, 64);
    const SsdSetup setup(t, k);
    const auto exact = setup.reference<double>(k);
    const auto plain = setup.reference<float>(k);
    const auto y = exact.forward();
    const auto y_plain = plain.forward();
    auto g = exact.backward(got.dy, got.dstate);
    auto g_plain =
        plain.backward({got.dy.begin(), got.dy.end()}, {got.dstate.begin(), got.dstate.end()});
    SsdReference<Magnitude>::Result y_terms;
    SsdReference<Magnitude> g_terms;
    if (matrix_units) {
      const auto terms = setup.reference<Magnitude>(k);
      y_terms = terms.forward();
      g_terms =
          terms.backward({got.dy.begin(), got.dy.end()}, {got.dstate.begin(), got.dstate.end()});
    }
    const auto allowed = [&](const Values& values, const std::vector<Magnitude>& terms,
                             int roundings, DType dtype) {
      return matrix_units ? allowance(values, terms, roundings, dtype) : Values();
    };
    y_error.add(got.y, y.y, testing::to_double(y_plain.y), allowed(y.y, y_terms.y, 2, k.dtype));
    state_error.add(got.state, y.state_out, testing::to_double(y_plain.state_out),
                    allowed(y.state_out, y_terms.state_out, 1, DType::f32));
    for (size_t i = 0; i < grad_errors.size(); ++i) {
      dtypes[i] = setup.tensors()[i].dtype;
      const Values& values = *fields(g)[i];
      grad_errors[i].add(got.grads[i], values, testing::to_double(*fields(g_plain)[i]),
                         allowed(values, *fields(g_terms)[i], kRoundings[i], dtypes[i]));
    }
  }
  const auto check = [&](const std::string& what, const Errors& e, DType dtype) {
    EXPECT_LE(e.got, bound(e.plain, e.largest, matrix_units ? DType::f32 : dtype))
        << what << ": error of the plain float32 run " << e.plain << ", largest value "
        << e.largest;
  };
  check("y", y_error, k.dtype);
  check("state", state_error, DType::f32);
  for (size_t i = 0; i < grad_errors.size(); ++i)
    check(std::string("d") + kSsdInputNames[i], grad_errors[i], dtypes[i]);
}

INSTANTIATE_TEST_SUITE_P(Cases, Ssd, ::testing::ValuesIn(cases()),
                         [](const auto& the_case) { return the_case.param.name; });

// The adjoint recurrence of the reference, which the table above trusts, against the complex step of its
// forward pass: every element of every input.
TEST(SsdReference, AdjointIsTheComplexStep) {
  std::vector<SsdCase> few(4);
  few[0].G = 2, few[0].H = 4, few[0].P = 2, few[0].N = 3, few[0].L = 7, few[0].B = 2,
  few[0].states = true;
  few[1].H = 2, few[1].P = 3, few[1].N = 2, few[1].L = 9, few[1].states = true,
  few[1].lengths = {2, 0, 3, 1, 3}, few[1].D_per_channel = true;
  few[2].H = 1, few[2].P = 2, few[2].N = 2, few[2].L = 8, few[2].a_is_log = false,
  few[2].dt_min = 0.2f, few[2].dt_max = 0.5f;
  few[3].H = 2, few[3].P = 2, few[3].N = 2, few[3].L = 6,
  few[3].softplus = few[3].D = few[3].bias = false;
  for (const SsdCase& k : few) {
    testing::TestContext t;
    testing::expect_adjoint_is_the_complex_step(SsdSetup(t, k), k, kSsdInputNames);
  }
}

// What is not finite in A must not look like a state that is forgotten.
TEST(SsdAlgebra, T33_AHeadWithoutANumberForAGivesNone) {
  for (const int64_t L : {2, 97}) {
    SsdCase k;
    k.L = L;
    testing::TestContext t;
    const SsdSetup s(t, k);
    set(s.in.A, 1, std::nan(""));
    const testing::Values y = testing::to_double(s.run(t).y);
    for (int64_t i = 1; i < L; ++i)
      for (int64_t h = 0; h < k.H; ++h)
        EXPECT_NE(std::isfinite(y[static_cast<size_t>((i * k.H + h) * k.P)]), h == 1)
            << "token " << i << " of " << L << ", head " << h;
  }
}

// Of a layer that is nothing else: y, then the gradients in the order of kSsdInputNames.
std::vector<Values> layer_of_ssd(const SsdCase& k, Recompute recompute) {
  testing::TestContext inputs(false, size_t{64} << 20);
  SsdSetup setup(inputs, k);
  Arena arena(DeviceMemory::shared_with(testing::test_device(), size_t{64} << 20));
  Tape tape;
  Context c;
  c.device = testing::test_device();
  c.arena = &arena;
  c.tape = &tape;
  SsdInputs& in = setup.in;
  Tensors all;
  for (Tensor* const t :
       {&in.x, &in.dt, &in.A, &in.B, &in.C, &in.D, &in.dt_bias, &setup.state_in}) {
    if (!*t) continue;
    tape.watch(*t);
    all.push_back(*t);
  }
  const auto layer = [&](Context& inner) {
    return Tensors{ssd(inner, in, nullptr, setup.state_in).y};
  };
  const Tensor y = segment(c, all, layer, {.recompute = recompute})[0];
  std::vector<Values> results{testing::to_double(y)};
  tape.seed(c, y, 0.5f);
  tape.backward(c);
  for (const Tensor& t : all) results.push_back(testing::to_double(tape.grad(t)));
  return results;
}

// On a GPU a layer that keeps all keeps the states before its chunks, which others compute again in backward.
TEST(SsdKept, StatesThatWereKeptAreThoseOfBackward) {
  std::vector<SsdCase> few(3);
  for (SsdCase& k : few) k.P = 64, k.N = 128, k.dtype = k.dtype_BC = DType::bf16;
  few[0].B = 2, few[0].L = 130, few[0].states = true;
  few[1].L = 1100, few[1].states = true;  // in pieces
  few[2].P = 128, few[2].N = 64, few[2].H = 4, few[2].G = 2, few[2].L = 200;
  for (const SsdCase& k : few) {
    const std::vector<Values> kept = layer_of_ssd(k, Recompute::none),
                              again = layer_of_ssd(k, Recompute::cheap);
    for (size_t i = 0; i < kept.size(); ++i) {
      EXPECT_GT(testing::max_abs(kept[i]), 0);
      testing::expect_same_bits(kept[i], again[i], fmt::format("{} of {} tokens", i, k.L));
    }
  }
}

TEST(SsdErrors, SayWhatWasExpected) {
  SsdCase k;
  k.B = 2, k.L = 8;
  testing::TestContext t;
  const SsdSetup s(t, k);
  const auto message = [&](auto change) {
    SsdInputs in = s.in;
    change(in);
    return testing::error_of([&] { ssd(t.c, in); });
  };
  EXPECT_EQ(message([&](SsdInputs& in) {
              in.dt = t.random({2, 8, 7}, DType::f32, 1);
            }),
            "[ssd] dt: expected (B, L, H) = (2, 8, 3), got (2, 8, 7)");
  EXPECT_EQ(message([&](SsdInputs& in) { in.A = t.random({3}, DType::bf16, 1); }),
            "[ssd] A: expected float32, got bfloat16");
  EXPECT_EQ(message([&](SsdInputs& in) { in.groups = 2; }),
            "[ssd] 3 heads cannot be cut into 2 groups of B and C");
  EXPECT_EQ(message([&](SsdInputs& in) {
              in.x = t.random({2, 8, 25}, DType::f32, 1);
            }),
            "[ssd] x: 25 channels cannot be cut into the 3 heads of A");
  EXPECT_NE(message([&](SsdInputs& in) { in.B = t.random({2, 8, 16}, DType::f16, 1); }), "");
  EXPECT_NE(message([&](SsdInputs& in) { in.D = t.random({3, 7}, DType::f32, 1); }), "");
  EXPECT_NE(message([&](SsdInputs& in) { in.dt_min = 2, in.dt_max = 1; }), "");
}

}  // namespace
}  // namespace krait::ops
