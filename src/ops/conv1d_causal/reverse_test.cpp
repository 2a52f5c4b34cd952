// Time running backwards is a flip of the tokens of each sequence, bit for bit.
#include "krait/ops/conv1d_causal/conv1d_causal.h"
#include "krait/testing/packing.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

struct Case {
  int64_t B, L, E, W;
  DType dtype = DType::f32;
  std::vector<int64_t> begin = {};  // packed, where not empty
};

std::vector<Values> outcome(const Case& k, bool flag) {
  TestContext t(true);
  const Tensor x = t.random({k.B, k.L, k.E}, k.dtype, 1), w = t.random({k.E, k.W}, DType::f32, 2),
               bias = t.random({k.E}, DType::f32, 3);
  std::vector<int64_t> begin = k.begin;
  Packing packing;
  if (begin.empty()) {
    for (int64_t b = 0; b <= k.B; ++b) begin.push_back(b * k.L);
  } else {
    packing.n = static_cast<int64_t>(begin.size()) - 1;
    packing.begin = t.from(to_double(begin), {packing.n + 1}, DType::i64, false);
    packing.state_in = t.tensor({packing.n}, DType::i32);
    packing.state_out = t.tensor({packing.n}, DType::i32);
    packing.longest = k.L;
    for (int64_t s = 0; s < packing.n; ++s)
      for (const Tensor& rows : {packing.state_in, packing.state_out})
        set(rows, s, static_cast<double>(s));
  }
  const auto n = static_cast<int64_t>(begin.size()) - 1;
  const Tensor in = t.random({n, k.E, k.W}, DType::f32, 4),
               out = t.tensor({n, k.E, k.W}, DType::f32);
  if (!flag) flip(x, begin);
  const ConvResult r =
      conv1d_causal(t.c, x, w, bias, true, k.begin.empty() ? nullptr : &packing, in, out, flag);
  const Tensor cotangent = t.from(random_values(r.y.numel(), 5), r.y.shape, DType::f32, false);
  if (!flag) flip(cotangent, begin);
  t.seed_grad(r.y, to_double(cotangent));
  t.seed_grad(r.state, random_values(r.state.numel(), 6));
  t.tape.backward(t.c);
  if (!flag) {
    flip(r.y, begin);
    flip(t.tape.grad(x), begin);
  }
  std::vector<Values> all = {to_double(r.y), to_double(r.state)};
  for (const Tensor& v : {x, w, bias, in}) all.push_back(to_double(t.tape.grad(v)));
  return all;
}

TEST(Conv1dCausalReverse, IsAFlipOfTheTokens) {
  // Sums over tokens are cut into pieces of 256 tokens: from both ends the same for these lengths.
  for (const Case& k :
       {Case{2, 40, 37, 4}, Case{3, 1, 16, 4}, Case{3, 2, 16, 3}, Case{2, 40, 20, 4, DType::bf16},
        Case{1, 60, 9, 4, DType::f32, {0, 20, 21, 23, 60}}}) {
    SCOPED_TRACE(fmt::format("B={} L={} E={}", k.B, k.L, k.E));
    const std::vector<Values> got = outcome(k, true), expected = outcome(k, false);
    for (size_t i = 0; i < got.size(); ++i)
      expect_same_bits(got[i], expected[i], fmt::format("result {}", i));
  }
}

}  // namespace
}  // namespace krait::ops
