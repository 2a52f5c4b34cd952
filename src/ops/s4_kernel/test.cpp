#include "krait/ops/s4_kernel/reference.h"
#include "krait/ops/s4_scan/s4_scan.h"
#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

struct Problem {
  S4Case k;
  TestContext test;
  S4Params p;

  explicit Problem(const S4Case& c, bool dplr, bool record = false, bool with_B = true)
      : k(c), test(record, size_t{64} << 20) {
    p.inv_dt = test.random({k.H, 1}, DType::f32, 1, {.mean = -2.5, .scale = 0.7});
    p.A_real = test.random({k.S, k.N}, DType::f32, 2, {.mean = -0.5, .scale = 0.3});
    p.A_imag = test.random({k.S, k.N}, DType::f32, 3, {.mean = 4, .scale = 3});
    if (with_B) p.B = test.random({1, k.S, k.N, 2}, DType::f32, 4);
    p.C = test.random({k.channels, k.H, k.N, 2}, DType::f32, 5);
    if (dplr) p.P = test.random({1, k.S, k.N, 2}, DType::f32, 6, {.scale = 0.8});
  }
  template <class T>
  S4Values<T> values() const {
    const auto of = [](const Tensor& t) {
      const Values v = to_double(t);
      return std::vector<T>(v.begin(), v.end());
    };
    return {of(p.inv_dt), of(p.A_real), of(p.A_imag), of(p.B), of(p.C), of(p.P)};
  }
  Values plain() const {
    const auto f = [](const Tensor& t) { return to_float(t); };
    return to_double(s4_kernel_reference<float>(
        k, {f(p.inv_dt), f(p.A_real), f(p.A_imag), f(p.B), f(p.C), f(p.P)}));
  }
  Tensor run() { return s4_kernel(test.c, p, k.options, k.L); }
};

void expect_kernel(const S4Case& k, bool dplr, bool with_B = true) {
  SCOPED_TRACE(fmt::format("H={} S={} N={} channels={} L={} length={} bilinear={}", k.H, k.S, k.N,
                           k.channels, k.L, k.options.length, k.options.bilinear));
  Problem s(k, dplr, false, with_B);
  expect_within_twice_plain(to_double(s.run()), s4_kernel_reference(k, s.values<double>()),
                            s.plain(), DType::f32, "K");
}

void expect_gradients(const S4Case& k, bool dplr, bool with_B = true) {
  SCOPED_TRACE(fmt::format("H={} S={} N={} channels={} L={} length={} bilinear={} dplr={}", k.H,
                           k.S, k.N, k.channels, k.L, k.options.length, k.options.bilinear, dplr));
  Problem s(k, dplr, true, with_B);
  const Tensor K = s.run();
  Values cotangent = random_values(K.numel(), 9);
  for (double& g : cotangent) g = static_cast<float>(g);
  s.test.seed_grad(K, cotangent);
  s.test.tape.backward(s.test.c);
  const auto check = [&](const char* name, const Tensor& t, auto member) {
    if (!t) return;
    const Values exact = complex_step_gradient(
        [&](const ComplexValues& x) {
          S4Values<Complex> v = s.values<Complex>();
          v.*member = x;
          return dot(s4_kernel_reference(k, v), cotangent);
        },
        to_double(t));
    // Rounded once; sums over heads cancel little.
    EXPECT_LE(max_abs_error(to_double(s.test.tape.grad(t)), exact), 0x1p-23 * max_abs(exact))
        << name << ", largest " << max_abs(exact);
  };
  using V = S4Values<Complex>;
  check("inv_dt", s.p.inv_dt, &V::inv_dt);
  check("A_real", s.p.A_real, &V::A_real);
  check("A_imag", s.p.A_imag, &V::A_imag);
  check("B", s.p.B, &V::B);
  check("C", s.p.C, &V::C);
  check("P", s.p.P, &V::P);
}

TEST(S4Kernel, DiagonalMatchesDouble) {
  for (int64_t L : {1, 2, 63, 64, 65, 300})
    for (int64_t N : {1, 3, 32}) expect_kernel({.H = 4, .S = 2, .N = N, .L = L}, false);
  expect_kernel({.H = 18, .S = 18, .N = 5, .channels = 2, .L = 70, .options = {.bilinear = true}},
                false);
  expect_kernel({.H = 3, .S = 3, .N = 4, .L = 70, .options = {.softplus_dt = true}}, false);
  expect_kernel({.H = 3, .S = 3, .N = 4, .L = 70, .options = {.positive_imag = true}}, false,
                false);
}

TEST(S4Kernel, DiagonalGradients) {
  expect_gradients({.H = 4, .S = 2, .N = 3, .L = 70}, false);
  expect_gradients({.H = 3, .S = 3, .N = 2, .L = 9, .options = {.positive_imag = true}}, false,
                   false);
  expect_gradients({.H = 2, .S = 1, .N = 2, .channels = 2, .L = 9, .options = {.bilinear = true}},
                   false);
  expect_gradients({.H = 2, .S = 1, .N = 2, .L = 9, .options = {.softplus_dt = true}}, false);
}

TEST(S4Kernel, DplrMatchesDouble) {
  for (int64_t length : {1, 2, 3, 10, 31, 64})
    for (int64_t N : {1, 4, 9})
      expect_kernel({.H = 4, .S = 2, .N = N, .L = (length + 1) / 2, .options = {.length = length}},
                    true);
  expect_kernel({.H = 17, .S = 1, .N = 3, .channels = 2, .L = 20, .options = {.length = 20}}, true);
}

TEST(S4Kernel, DplrGradients) {
  expect_gradients({.H = 4, .S = 2, .N = 3, .L = 12, .options = {.length = 12}}, true);
  expect_gradients({.H = 2, .S = 1, .N = 2, .channels = 2, .L = 7, .options = {.length = 9}}, true);
}

// The response to one impulse, step by step, is the kernel: of C as it is for diagonal models, of C before
// it was attuned for DPLR ones; attuning from one length to a multiple is attuning to that at once.
TEST(S4Kernel, IsTheImpulseResponseOfTheSteps) {
  for (const bool dplr : {false, true})
    for (const bool bilinear : {false, true}) {
      const int64_t L = 40, H = 5;
      Problem s({.H = H, .S = 1, .N = 6, .L = L, .options = {.bilinear = bilinear}}, dplr);
      const Tensor D = s.test.from(Values(H, 0.0), {1, H}, DType::f32);
      Values impulse(static_cast<size_t>(L * H), 0.0);
      std::fill_n(impulse.begin(), H, 1.0);
      const Tensor u = s.test.from(impulse, {1, L, H}, DType::f32);
      const S4Steps before = s4_steps(s.p, s.k.options);
      const Values y = to_double(s4_scan(s.test.c, u, &before, D).y);
      const auto expect_same = [&](const Values& got, const char* what) {
        EXPECT_LE(max_abs_error(got, y), 1e-5 * max_abs(y)) << what;
      };
      if (dplr) {
        const Values raw = to_double(s.p.C);
        s4_attune(s.p, s.k.options, L / 2);
        s.k.options.length = L / 2;
        s4_attune(s.p, s.k.options, L);
        s.k.options.length = L;
        const S4Steps after = s4_steps(s.p, s.k.options);
        expect_same(to_double(s4_scan(s.test.c, u, &after, D).y), "steps of an attuned C");
      }
      const Values K = to_double(s.run());  // (1, H, L)
      Values time_first(K.size());
      for (int64_t h = 0; h < H; ++h)
        for (int64_t l = 0; l < L; ++l)
          time_first[static_cast<size_t>(l * H + h)] = K[static_cast<size_t>(h * L + l)];
      expect_same(time_first, "kernel");
    }
}

TEST(S4Kernel, SameBitsForAnyNumberOfThreads) {
  for (const bool dplr : {false, true}) {
    Values first;
    for (int n : {1, 4}) {
      const ThreadCount threads(n);
      Problem s({.H = 37, .S = 1, .N = 4, .L = 33, .options = {.length = 33}}, dplr, true);
      const Tensor K = s.run();
      s.test.seed_grad(K, random_values(K.numel(), 3));
      s.test.tape.backward(s.test.c);
      Values all = to_double(K);
      for (const Tensor& t : {s.p.inv_dt, s.p.A_real, s.p.A_imag, s.p.B, s.p.C}) {
        const Values g = to_double(s.test.tape.grad(t));
        all.insert(all.end(), g.begin(), g.end());
      }
      if (first.empty()) first = all;
      expect_same_bits(all, first, "K and gradients");
    }
  }
}

TEST(S4Kernel, RefusesWhatDoesNotFit) {
  Problem s({.H = 4, .S = 2, .N = 3, .L = 12, .options = {.length = 10}}, true);
  EXPECT_THROW(s.run(), Error);  // longer than what C is attuned to
  s.k.L = 10;
  s.p.A_imag = s.test.random({2, 4}, DType::f32, 1);
  EXPECT_THROW(s.run(), Error);
}

}  // namespace
}  // namespace krait::ops
