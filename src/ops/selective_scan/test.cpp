// selective_scan against the double reference: values, and gradients of every input.
#include <gtest/gtest.h>

#include "krait/ops/selective_scan/fixture.h"
#include "krait/testing/adjoint.h"
#include "krait/testing/cases.h"

namespace krait::ops {
namespace {

using testing::Errors;
using testing::Values;

std::vector<ScanCase> cases() {
  std::vector<ScanCase> all;
  const auto add = testing::adder(all);
  for (int64_t L : {0, 1, 2, 8, 9, 31, 64, 65, 97, 128, 257, 1025})
    add(fmt::format("L{}", L), [&](ScanCase& k) { k.L = L, k.states = true, k.B = 2; });
  for (int64_t E : {1, 7, 16, 40})
    for (int64_t N : {1, 4, 16, 17, 35})
      add(fmt::format("E{}_N{}", E, N),
          [&](ScanCase& k) { k.E = E, k.N = N, k.states = true, k.L = 70; });
  add("E300_sets_of_channels", [](ScanCase& k) { k.E = 300, k.L = 66; });
  add("N256", [](ScanCase& k) { k.N = 256, k.E = 5, k.L = 67; });
  add("step_N17_constant",
      [](ScanCase& k) { k.N = 17, k.L = 3, k.states = true, k.constant_B = k.constant_C = true; });
  add("groups2", [](ScanCase& k) { k.G = 2, k.E = 40, k.B = 2; });
  add("groups4_of_5", [](ScanCase& k) { k.G = 4, k.E = 20, k.strided = true; });
  add("groups3_step", [](ScanCase& k) { k.G = 3, k.E = 48, k.L = 4, k.states = true; });
  add("groups1_rank4", [](ScanCase& k) { k.G = 1; });
  add("T38_constant_B", [](ScanCase& k) { k.constant_B = true, k.E = 20; });
  add("T38_constant_C", [](ScanCase& k) { k.constant_C = true, k.E = 20; });
  add("T38_constant_C_groups", [](ScanCase& k) { k.constant_C = true, k.E = 20, k.G = 2; });
  add("T38_constant_B_C", [](ScanCase& k) { k.constant_B = k.constant_C = true, k.N = 5; });
  add("T38_no_D", [](ScanCase& k) { k.D = false; });
  add("T38_no_z", [](ScanCase& k) { k.z = false; });
  add("T38_no_bias", [](ScanCase& k) { k.bias = false; });
  add("T38_bare", [](ScanCase& k) {
    k.D = k.z = k.bias = k.softplus = k.a_is_log = false, k.dt_mean = 0.3, k.dt_scale = 0.1;
  });
  add("T5_no_softplus", [](ScanCase& k) { k.softplus = false, k.dt_mean = 0.3, k.dt_scale = 0.1; });
  add("T11_A_given", [](ScanCase& k) { k.a_is_log = false; });
  add("T15_strided", [](ScanCase& k) { k.strided = true, k.B = 3, k.E = 23; });
  add("T13_tail_of_chunk_and_lanes",
      [](ScanCase& k) { k.L = 3 * 64 + 5, k.E = 19, k.states = true; });
  add("T12_slow_decay_many_chunks", [](ScanCase& k) {
    k.L = 400, k.A_mean = -6, k.A_scale = 0.3, k.dt_mean = -4, k.states = true;
  });
  add("T25_packed", [](ScanCase& k) {
    k.B = 3, k.L = 100, k.E = 20, k.states = true, k.lengths = {5, 0, 130, 1, 63, 1, 0, 8, 64, 28};
  });
  add("T21_packed_three_chunks_each", [](ScanCase& k) {
    k.B = 1, k.L = 600, k.states = true, k.lengths = {150, 200, 101, 149};
  });
  add("packed_without_states", [](ScanCase& k) { k.B = 2, k.L = 50, k.lengths = {30, 0, 1, 69}; });
  add("dt_huge", [](ScanCase& k) { k.dt_mean = 25, k.dt_scale = 5; });
  add("dt_very_negative", [](ScanCase& k) { k.dt_mean = -60, k.dt_scale = 30, k.states = true; });
  add("decay_underflows", [](ScanCase& k) { k.A_mean = 6, k.A_scale = 2, k.states = true; });
  add("A_beyond_any_exponent", [](ScanCase& k) { k.A_mean = 60, k.A_scale = 5, k.dt_mean = 3; });
  const auto add_complex = [&](std::string name, auto change) {
    add("complex_" + std::move(name), [&](ScanCase& k) {
      k.complex = k.states = true, k.a_is_log = false;
      change(k);
    });
  };
  for (int64_t L : {0, 1, 5, 64, 65, 257, 1025})
    add_complex(fmt::format("L{}", L), [&](ScanCase& k) { k.L = L, k.B = 2; });
  for (int64_t E : {1, 16, 40})
    for (int64_t N : {2, 8, 10, 34})
      add_complex(fmt::format("E{}_N{}", E, N), [&](ScanCase& k) { k.E = E, k.N = N, k.L = 70; });
  add_complex("groups4_of_5", [](ScanCase& k) { k.G = 4, k.E = 20, k.strided = true, k.B = 2; });
  add_complex("T38_constant_B", [](ScanCase& k) { k.constant_B = true, k.E = 20; });
  add_complex("T38_constant_C", [](ScanCase& k) { k.constant_C = true, k.E = 20, k.G = 2; });
  add_complex("T38_constant_B_C", [](ScanCase& k) { k.constant_B = k.constant_C = true; });
  add_complex("T38_bare", [](ScanCase& k) {
    k.D = k.z = k.bias = k.softplus = k.states = false, k.dt_mean = 0.3, k.dt_scale = 0.1;
  });
  add_complex("many_turns", [](ScanCase& k) { k.turning = 200, k.L = 200; });
  // What one step is off in the same way as the next adds up over hundreds of them.
  for (double turning : {0.5, 4.0, 40.0})
    add_complex(fmt::format("T12_slow_decay_turning_{}", turning * 10), [&](ScanCase& k) {
      k.turning = turning, k.slowness = 300, k.L = 1025, k.N = 8, k.E = 8;
    });
  add_complex("T25_packed", [](ScanCase& k) {
    k.B = 3, k.L = 100, k.E = 20, k.lengths = {5, 0, 130, 1, 63, 1, 0, 8, 64, 28};
  });
  for (int64_t L : {5, 130})
    add_complex(fmt::format("bf16_L{}", L), [&](ScanCase& k) {
      k.dtype = k.dtype_BC = DType::bf16, k.L = L, k.E = 23, k.strided = true;
    });
  // On a GPU a kernel of its own: blocks of 16, 32, 64 and 96 channels, all there or not, sequences cut into segments.
  const auto add_bf16 = [&](std::string name, auto change) {
    add(std::move(name), [&](ScanCase& k) {
      k.dtype = k.dtype_BC = DType::bf16, k.states = true;
      change(k);
    });
  };
  for (int64_t L : {1, 2, 31, 33, 97})
    add_bf16(fmt::format("bf16_kernel_L{}", L), [&](ScanCase& k) { k.L = L; });
  for (int64_t E : {4, 64, 96, 200})
    add_bf16(fmt::format("bf16_kernel_E{}", E), [&](ScanCase& k) { k.E = E; });
  for (int64_t E : {96, 192})  // so many sequences that a block has 64 or 96 channels
    add_bf16(fmt::format("bf16_kernel_E{}_of_many", E),
             [&](ScanCase& k) { k.E = E, k.B = 45, k.L = 40, k.memory = size_t{256} << 20; });
  add_bf16("bf16_kernel_BC_f32_of_many", [](ScanCase& k) {
    k.E = 192, k.B = 45, k.L = 40, k.dtype_BC = DType::f32, k.memory = size_t{256} << 20;
  });
  const auto add_sixteens = [&](std::string name, auto change) {  // 96 to 128 blocks of 16 channels
    add_bf16("bf16_kernel_sixteens_" + std::move(name), [&](ScanCase& k) {
      k.E = 256, k.B = 6, k.memory = size_t{256} << 20;
      change(k);
    });
  };
  for (int64_t L : {1, 31, 33, 97})
    add_sixteens(fmt::format("L{}", L), [&](ScanCase& k) { k.L = L; });
  add_sixteens("groups", [](ScanCase& k) { k.G = 2, k.E = 320, k.L = 70; });
  add_sixteens("bare", [](ScanCase& k) {
    k.D = k.z = k.bias = k.softplus = k.states = false, k.dt_mean = 0.3, k.dt_scale = 0.1;
  });
  add_sixteens("packed", [](ScanCase& k) {
    k.B = 3, k.L = 100, k.E = 192, k.lengths = {5, 0, 130, 1, 63, 1, 0, 8, 64, 28};
  });
  add_bf16("bf16_kernel_N8", [](ScanCase& k) { k.N = 8; });
  add_bf16("bf16_kernel_groups", [](ScanCase& k) { k.G = 2, k.E = 192, k.B = 2; });
  add_bf16("bf16_kernel_segments", [](ScanCase& k) { k.L = 2500, k.E = 96; });
  add_bf16("bf16_kernel_segments_short",  // five of 416 tokens, the last one shorter
           [](ScanCase& k) { k.L = 2048, k.E = 96, k.dt_mean = -4, k.A_mean = -1; });
  add_bf16("bf16_kernel_segments_slow",  // all before a segment counts in what enters it
           [](ScanCase& k) { k.L = 2500, k.E = 96, k.dt_mean = -6, k.A_mean = -2; });
  add_bf16("bf16_kernel_segments_fresh", [](ScanCase& k) {  // ever fewer channels and states count
    k.L = 70'000, k.memory = size_t{256} << 20, k.fresh = true, k.dt_mean = 0, k.dt_scale = 0.1;
  });
  add_bf16("bf16_kernel_segments_BC_f32",
           [](ScanCase& k) { k.L = 2500, k.E = 96, k.dtype_BC = DType::f32; });
  add_bf16("bf16_kernel_packed_BC_f32", [](ScanCase& k) {
    k.B = 3, k.L = 100, k.E = 20, k.dtype_BC = DType::f32,
    k.lengths = {5, 0, 130, 1, 63, 1, 0, 8, 64, 28};
  });
  add_bf16("bf16_kernel_segments_of_many", [](ScanCase& k) { k.L = 1100, k.E = 20, k.B = 3; });
  add_bf16("bf16_kernel_packed_one", [](ScanCase& k) { k.L = 2100, k.E = 96, k.lengths = {2100}; });
  add_bf16("bf16_kernel_packed", [](ScanCase& k) {
    k.B = 3, k.L = 100, k.E = 20, k.lengths = {5, 0, 130, 1, 63, 1, 0, 8, 64, 28};
  });
  for (int64_t L : {5, 130}) {
    add(fmt::format("bf16_L{}", L), [&](ScanCase& k) { k.dtype = DType::bf16, k.L = L, k.E = 40; });
    add(fmt::format("bf16_all_L{}", L), [&](ScanCase& k) {
      k.dtype = k.dtype_BC = DType::bf16, k.L = L, k.E = 23, k.strided = true, k.states = true,
      k.G = 1;
    });
  }
  return all;
}

class SelectiveScan : public ::testing::TestWithParam<ScanCase> {};

// The bound: twice the error of a plain float32 run, and beside it the rounding of the result to its dtype
// and a few roundings of float32: Δ, the decay and the gate are a unit in the last place less exact than
// those of the C library, and their errors are common to all states of a channel. For rows of bfloat16 a GPU takes
// them to 2^-19 (tensor/cuda/exponentials.cuh), a 512th of what the rows were rounded by; and `of_products`, where
// dB and dC are bfloat16, it cuts the products that they are sums of to 11 bits before the result is rounded to 8.
double bound(double plain, double largest, DType dtype, DType of_rows, bool of_products) {
  double own = dtype == DType::f32 ? 0 : testing::rounding(dtype);
  const bool fast = of_rows == DType::bf16 && testing::test_device().type == Device::cuda;
  if (fast && of_products && dtype == DType::bf16) own += 0x1p-10;
  return 2 * plain + (own + (fast ? 0x1p-19 : 4 * testing::rounding(DType::f32))) * largest;
}

// Values, last states and all gradients from random cotangents on both, with and without a tape. The error
// of a plain run over a handful of elements is a matter of luck: small cases are tried several times, and
// the worst error is held against twice the worst error of the plain runs.
TEST_P(SelectiveScan, MatchesReference) {
  ScanCase k = GetParam();
  Errors y_error, state_error, after_error;
  std::vector<Errors> grad_errors(std::size(kScanInputNames));
  std::vector<DType> dtypes(std::size(kScanInputNames));
  const int64_t trials = k.L > 10'000 ? 1 : std::clamp<int64_t>(2048 / (k.E * k.N), 1, 8);
  for (int64_t trial = 0; trial < trials; ++trial) {
    k.seed = static_cast<uint64_t>(trial);
    const ScanOutcome got = run_scan(k, true);
    testing::expect_same_bits(run_scan(k, false).y, got.y, "recorded and unrecorded");
    testing::TestContext t(false, 64);
    const ScanSetup setup(t, k);
    const auto exact = setup.reference<double>(k);
    const auto plain = setup.reference<float>(k);
    const auto y = exact.forward();
    const auto y_plain = plain.forward();
    y_error.add(got.y, y.y, testing::to_double(y_plain.y));
    after_error.add(got.y_after, y.y, testing::to_double(y_plain.y));
    state_error.add(got.state, y.state_out, testing::to_double(y_plain.state_out));
    auto g = exact.backward(got.dy, got.dstate);
    auto g_plain =
        plain.backward({got.dy.begin(), got.dy.end()}, {got.dstate.begin(), got.dstate.end()});
    for (size_t i = 0; i < grad_errors.size(); ++i) {
      dtypes[i] = setup.tensors()[i].dtype;
      grad_errors[i].add(got.grads[i], *fields(g)[i], testing::to_double(*fields(g_plain)[i]));
    }
  }
  const auto check = [&](const std::string& what, const Errors& e, DType dtype) {
    const bool of_products = what == "dB" || what == "dC";
    EXPECT_LE(e.got, bound(e.plain, e.largest, dtype, k.dtype, of_products))
        << what << ": error of the plain float32 run " << e.plain << ", largest value "
        << e.largest;
  };
  check("y", y_error, k.dtype);
  check("y after backward", after_error, k.dtype);
  check("state", state_error, DType::f32);
  for (size_t i = 0; i < grad_errors.size(); ++i)
    check(std::string("d") + kScanInputNames[i], grad_errors[i], dtypes[i]);
}

INSTANTIATE_TEST_SUITE_P(Cases, SelectiveScan, ::testing::ValuesIn(cases()),
                         [](const auto& the_case) { return the_case.param.name; });

// The adjoint recurrence of the reference, which the table above trusts, against the complex step of its
// forward pass: every element of every input.
TEST(SelectiveScanReference, AdjointIsTheComplexStep) {
  std::vector<ScanCase> few(6);
  few[0].G = 2, few[0].E = 4, few[0].N = 3, few[0].L = 7, few[0].B = 2, few[0].states = true;
  few[1].E = 3, few[1].N = 2, few[1].L = 9, few[1].states = true, few[1].lengths = {2, 0, 3, 1, 3};
  few[2].E = 3, few[2].N = 2, few[2].L = 5, few[2].constant_B = few[2].constant_C = true,
  few[2].a_is_log = false;
  few[3].E = 2, few[3].N = 2, few[3].L = 6,
  few[3].softplus = few[3].z = few[3].D = few[3].bias = false;
  few[4] = few[0], few[4].N = 4, few[5] = few[2], few[5].N = 4, few[5].states = true;
  for (size_t i : {4, 5}) few[i].complex = true, few[i].a_is_log = false;
  for (const ScanCase& k : few) {
    testing::TestContext t;
    testing::expect_adjoint_is_the_complex_step(ScanSetup(t, k), k, kScanInputNames);
  }
}

// Blocks of 16, 32, 64 and 96 channels sum over n in the same order in both passes.
TEST(SelectiveScanAlgebra, BackwardMakesTheBitsOfYAgain) {
  for (const auto& [B, E] : {std::pair{44, 32}, {45, 32}, {45, 64}, {45, 96}, {45, 192}}) {
    ScanCase k;
    k.B = B, k.L = 70, k.E = E, k.dtype = k.dtype_BC = DType::bf16, k.memory = size_t{256} << 20;
    const ScanOutcome o = run_scan(k, true);
    testing::expect_same_bits(o.y_after, o.y, fmt::format("{} x {} channels", B, E));
  }
}

// What is not finite in A must not look like a state that is forgotten, whatever else the bits of a NaN say.
TEST(SelectiveScanAlgebra, T33_AChannelWithoutANumberForAGivesNone) {
  for (const auto& [is_log, bits] : std::initializer_list<std::pair<bool, uint32_t>>{
           {true, 0x7fc00000}, {false, 0x7fc00000}, {true, 0x7fc00001}, {false, 0x7f8000ff}})
    for (const int64_t L : {2, 97}) {
      ScanCase k;
      k.L = L, k.a_is_log = is_log;
      testing::TestContext t;
      const ScanSetup s(t, k);
      std::memcpy(static_cast<float*>(s.in.A.data) + 3 * k.N + 1, &bits, sizeof(bits));
      const Values y = testing::to_double(s.run(t).y);
      for (int64_t i = 1; i < L; ++i)
        for (int64_t e = 0; e < k.E; ++e)
          EXPECT_NE(std::isfinite(y[static_cast<size_t>(i * k.E + e)]), e == 3)
              << "token " << i << " of " << L << ", channel " << e;
    }
}

TEST(SelectiveScanErrors, SayWhatWasExpected) {
  ScanCase k;
  k.B = 2, k.L = 8;
  testing::TestContext t;
  const ScanSetup s(t, k);
  const auto message = [&](auto change) {
    ScanInputs in = s.in;
    change(in);
    return testing::error_of([&] { selective_scan(t.c, in); });
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

}  // namespace
}  // namespace krait::ops
