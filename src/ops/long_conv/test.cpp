#include "krait/ops/long_conv/long_conv.h"

#include "krait/ops/long_conv/reference.h"
#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

struct Case {
  int64_t B = 1, L = 1, H = 1, Lk = 1, directions = 1;
  DType dtype = DType::f32;
  bool strided = false;
  std::vector<int64_t> lengths = {};  // packed, where not empty
};

struct Conv {
  Case k;
  TestContext test;
  Tensor u, K, D, y;
  Packing packing;
  std::vector<std::pair<int64_t, int64_t>> sequences;

  explicit Conv(const Case& c, bool record = false) : k(c), test(record, size_t{64} << 20) {
    u = test.random({k.B, k.L, k.H}, k.dtype, 1, {.strided = k.strided});
    K = test.random({k.directions, k.H, k.Lk}, DType::f32, 2);
    D = test.random({1, k.H}, DType::f32, 3);
    for (int64_t b = 0; b < k.B && k.lengths.empty(); ++b)
      sequences.emplace_back(b * k.L, (b + 1) * k.L);
    int64_t at = 0;
    for (const int64_t length : k.lengths) {
      sequences.emplace_back(at, at + length);
      at += length;
      packing.longest = std::max(packing.longest, length);
    }
    if (!k.lengths.empty()) {
      packing.n = static_cast<int64_t>(k.lengths.size());
      packing.begin = test.tensor({packing.n + 1}, DType::i64);
      for (int64_t s = 0; s < packing.n; ++s)
        set(packing.begin, s, static_cast<double>(sequences[static_cast<size_t>(s)].first));
      set(packing.begin, packing.n, static_cast<double>(at));
    }
  }
  void run() { y = long_conv(test.c, u, K, D, k.lengths.empty() ? nullptr : &packing); }
  template <class T>
  std::vector<T> reference(const std::vector<T>& uv, const std::vector<T>& Kv,
                           const std::vector<T>& Dv) const {
    return long_conv_reference<T>(k.H, k.Lk, k.directions, sequences, uv, Kv, Dv);
  }
};

void expect_matches_reference(const Case& k) {
  SCOPED_TRACE(fmt::format("B={} L={} H={} Lk={} directions={} packed={}", k.B, k.L, k.H, k.Lk,
                           k.directions, k.lengths.size()));
  Conv c(k);
  c.run();
  expect_within_twice_plain(
      to_double(c.y), c.reference(to_double(c.u), to_double(c.K), to_double(c.D)),
      to_double(c.reference(to_float(c.u), to_float(c.K), to_float(c.D))), k.dtype, "y");
}

TEST(LongConv, MatchesDouble) {
  for (int64_t directions : {1, 2}) {
    for (int64_t L : {1, 2, 3, 17, 64})
      for (int64_t Lk : {1, 2, 16, 17, 100})
        expect_matches_reference(
            {.B = 3, .L = L, .H = 11, .Lk = Lk, .directions = directions, .strided = L > 10});
    expect_matches_reference(
        {.B = 2, .L = 40, .H = 5, .Lk = 40, .directions = directions, .dtype = DType::bf16});
    expect_matches_reference({.B = 1,
                              .L = 40,
                              .H = 5,
                              .Lk = 40,
                              .directions = directions,
                              .lengths = {1, 0, 17, 9, 13}});
  }
}

void expect_gradients(const Case& k) {
  SCOPED_TRACE(
      fmt::format("B={} L={} H={} Lk={} directions={}", k.B, k.L, k.H, k.Lk, k.directions));
  Conv c(k, true);
  c.run();
  Values cotangent = random_values(c.y.numel(), 4);
  for (double& g : cotangent) g = static_cast<float>(g);
  c.test.seed_grad(c.y, cotangent);
  c.test.tape.backward(c.test.c);
  const ComplexValues uv = to_complex(to_double(c.u)), Kv = to_complex(to_double(c.K)),
                      Dv = to_complex(to_double(c.D));
  const auto check = [&](const char* name, const Tensor& t, const auto& f) {
    const Values exact = complex_step_gradient(f, to_double(t));
    EXPECT_LE(max_abs_error(to_double(c.test.tape.grad(t)), exact), 0x1p-23 * max_abs(exact))
        << name;
  };
  check("u", c.u, [&](const ComplexValues& x) { return dot(c.reference(x, Kv, Dv), cotangent); });
  check("K", c.K, [&](const ComplexValues& x) { return dot(c.reference(uv, x, Dv), cotangent); });
  check("D", c.D, [&](const ComplexValues& x) { return dot(c.reference(uv, Kv, x), cotangent); });
}

TEST(LongConv, Gradients) {
  for (int64_t directions : {1, 2}) {
    for (int64_t Lk : {3, 7, 12})
      expect_gradients({.B = 3, .L = 7, .H = 3, .Lk = Lk, .directions = directions});
    expect_gradients(
        {.B = 1, .L = 12, .H = 2, .Lk = 6, .directions = directions, .lengths = {5, 1, 6}});
  }
}

TEST(LongConv, SameBitsForAnyNumberOfThreads) {
  Values first;
  for (int n : {1, 4}) {
    const ThreadCount threads(n);
    Conv c({.B = 3, .L = 50, .H = 77, .Lk = 50, .directions = 2}, true);
    c.run();
    c.test.seed_grad(c.y, random_values(c.y.numel(), 3));
    c.test.tape.backward(c.test.c);
    Values all = to_double(c.y);
    for (const Tensor& t : {c.u, c.K, c.D}) {
      const Values g = to_double(c.test.tape.grad(t));
      all.insert(all.end(), g.begin(), g.end());
    }
    if (first.empty()) first = all;
    expect_same_bits(all, first, "y and gradients");
  }
}

}  // namespace
}  // namespace krait::ops
