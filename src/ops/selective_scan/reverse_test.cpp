// Time running backwards is a flip of the tokens of each sequence, of what comes out too: bit for bit, as
// the same steps are taken in the same order. On a GPU sequences are counted from the last on, so that sums over
// sequences are taken in another order.
#include "krait/ops/selective_scan/fixture.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

// y, states and gradients with the flag, or with flipped tokens instead; both in memory order.
std::vector<Values> outcome(const ScanCase& k, bool flag) {
  TestContext t(true, size_t{16} << 20);
  ScanSetup setup(t, k);
  const std::vector<int64_t> begin = setup.reference<double>(k).begin;
  setup.in.reverse = flag;
  std::vector<Tensor> over_time = {setup.in.u, setup.in.dt, setup.in.z};
  if (!k.constant_B) over_time.push_back(setup.in.B);
  if (!k.constant_C) over_time.push_back(setup.in.C);
  if (!flag)
    for (const Tensor& x : over_time)
      if (x) flip(x, begin);
  const ScanResult r = setup.run(t);
  const Tensor cotangent = t.from(random_values(r.y.numel(), 5), r.y.shape, r.y.dtype, false);
  if (!flag) flip(cotangent, begin);
  t.seed_grad(r.y, to_double(cotangent));
  if (r.state) t.seed_grad(r.state, random_values(r.state.numel(), 6));
  t.tape.backward(t.c);
  if (!flag) {
    flip(r.y, begin);
    for (const Tensor& x : over_time)
      if (x) flip(t.tape.grad(x), begin);
  }
  std::vector<Values> all = {to_double(r.y), to_double(r.state)};
  for (const Tensor& x : setup.tensors()) all.push_back(x ? to_double(t.tape.grad(x)) : Values());
  return all;
}

TEST(SelectiveScanReverse, IsAFlipOfTheTokens) {
  for (const ScanCase& k :
       {ScanCase{"plain", 2, 97}, ScanCase{.name = "short", .B = 3, .L = 5},
        ScanCase{.name = "one token", .B = 3, .L = 1},
        ScanCase{.name = "groups", .B = 2, .L = 70, .E = 36, .N = 5, .G = 2},
        ScanCase{.name = "strided", .B = 2, .L = 70, .strided = true},
        ScanCase{.name = "states", .B = 2, .L = 70, .states = true},
        ScanCase{.name = "complex", .B = 2, .L = 70, .a_is_log = false, .complex = true},
        ScanCase{.name = "bfloat16",
        .B = 2,
        .L = 1500,
        .E = 40,
        .states = true,
        .dtype = DType::bf16,
        .dtype_BC = DType::bf16},
        ScanCase{.name = "constant", .B = 2, .L = 9, .constant_B = true},
        ScanCase{
            .name = "packed", .B = 1, .L = 200, .states = true, .lengths = {64, 1, 100, 30, 5}}}) {
    SCOPED_TRACE(k.name);
    const std::vector<Values> got = outcome(k, true), expected = outcome(k, false);
    for (size_t i = 0; i < got.size(); ++i) {
      const std::string what = i < 2 ? "result" : std::string("d") + kScanInputNames[i - 2];
      const bool over_sequences = what == "dA" || what == "dD" || what == "ddt_bias" ||
                                  what == "dstate_in" || (what == "dB" && k.constant_B) ||
                                  (what == "dC" && k.constant_C);
      if (test_device().type == Device::cuda && over_sequences)
        expect_relative(got[i], expected[i], 8 * rounding(DType::f32), what);
      else
        expect_same_bits(got[i], expected[i], what);
    }
  }
}

}  // namespace
}  // namespace krait::ops
