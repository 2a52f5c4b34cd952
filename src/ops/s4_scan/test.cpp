#include "krait/ops/s4_scan/s4_scan.h"

#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

struct Model {
  TestContext test;
  S4Params p;
  S4Steps steps;
  Tensor D;

  Model(int64_t H, int64_t N, bool dplr) {
    p.inv_dt = test.random({H}, DType::f32, 1, {.mean = -2.5, .scale = 0.7});
    p.A_real = test.random({1, N}, DType::f32, 2, {.mean = -0.5, .scale = 0.3});
    p.A_imag = test.random({1, N}, DType::f32, 3, {.mean = 4, .scale = 3});
    p.B = test.random({1, 1, N, 2}, DType::f32, 4);
    p.C = test.random({1, H, N, 2}, DType::f32, 5);
    if (dplr) p.P = test.random({1, 1, N, 2}, DType::f32, 6, {.scale = 0.8});
    D = test.random({1, H}, DType::f32, 7);
    steps = s4_steps(p, {});
  }
};

// y of the plain recurrence h' = Āh + B̄u in double, and its last state.
TEST(S4Scan, DiagonalMatchesDouble) {
  for (int64_t N : {1, 7, 8, 33}) {
    const int64_t B = 2, L = 19, H = 18;
    Model m(H, N, false);
    const Tensor u = m.test.random({B, L, H}, DType::f32, 8, {.strided = true});
    const Tensor in = m.test.random({B, H, N, 2}, DType::f32, 9);
    const Tensor out = m.test.tensor({B, H, N, 2}, DType::f32);
    const Values got = to_double(s4_scan(m.test.c, u, &m.steps, m.D, nullptr, in, out).y);
    Values y, state;
    for (int64_t b = 0; b < B; ++b)
      for (int64_t h = 0; h < H; ++h)
        for (int64_t n = 0; n < N; ++n) {
          const Complex A(-std::exp(get(m.p.A_real, n)), -get(m.p.A_imag, n));
          const Complex decay = std::exp(std::exp(get(m.p.inv_dt, h)) * A);
          const Complex drive =
              (decay - 1.0) / A * Complex(get(m.p.B, 2 * n), get(m.p.B, 2 * n + 1));
          const int64_t at = ((b * H + h) * N + n) * 2, c = (h * N + n) * 2;
          Complex x(get(in, at), get(in, at + 1));
          y.resize(static_cast<size_t>(B * L * H));
          for (int64_t t = 0; t < L; ++t) {
            const double ut = get(u, (b * L + t) * H + h);
            x = decay * x + drive * ut;
            y[static_cast<size_t>((b * L + t) * H + h)] +=
                2 * (Complex(get(m.p.C, c), get(m.p.C, c + 1)) * x).real() +
                (n == 0 ? get(m.D, h) * ut : 0);
          }
          state.push_back(x.real());
          state.push_back(x.imag());
        }
    EXPECT_LE(max_abs_error(got, y), 0x1p-23 * max_abs(y));
    EXPECT_LE(max_abs_error(to_double(out), state), 0x1p-23 * max_abs(state));
  }
}

// Whole = chunked = stepped, states in place; a state is rounded to float32 between calls.
TEST(S4Scan, WholeIsChunkedIsSteppedIsPacked) {
  for (const bool dplr : {false, true}) {
    const int64_t L = 24, H = 5, N = 6;
    Model m(H, N, dplr);
    const Tensor u = m.test.random({1, L, H}, DType::f32, 8);
    const Tensor last = m.test.tensor({1, H, N, 2}, DType::f32);
    const Values whole = to_double(s4_scan(m.test.c, u, &m.steps, m.D, nullptr, {}, last).y);
    for (int64_t chunk : {1, 7}) {
      const Tensor state =
          m.test.from(Values(static_cast<size_t>(H * N * 2), 0.0), {1, H, N, 2}, DType::f32);
      Values parts;
      for (int64_t t = 0; t < L; t += chunk) {
        const Tensor part = u.slice(1, t, std::min(L, t + chunk));
        const Values y = to_double(s4_scan(m.test.c, part, &m.steps, m.D, nullptr, state, state).y);
        parts.insert(parts.end(), y.begin(), y.end());
      }
      EXPECT_LE(max_abs_error(parts, whole), 1e-6 * max_abs(whole)) << chunk;
      EXPECT_LE(max_abs_error(to_double(state), to_double(last)), 1e-6 * max_abs(to_double(last)));
    }
    Packing packing;
    packing.n = 2;
    packing.longest = 16;
    packing.begin = m.test.from({0, 8, 24}, {3}, DType::i64);
    packing.state_in = m.test.from({-1, -1}, {2}, DType::i32);
    packing.state_out = m.test.from({1, -1}, {2}, DType::i32);
    const Tensor out = m.test.tensor({3, H, N, 2}, DType::f32);
    const Values packed = to_double(s4_scan(m.test.c, u, &m.steps, m.D, &packing, {}, out).y);
    const Values first = to_double(s4_scan(m.test.c, u.slice(1, 0, 8), &m.steps, m.D).y);
    const Values second = to_double(s4_scan(m.test.c, u.slice(1, 8, 24), &m.steps, m.D).y);
    Values both = first;
    both.insert(both.end(), second.begin(), second.end());
    expect_same_bits(packed, both, "packed");
    EXPECT_TRUE(std::isnan(get(out, 0))) << "a row that no sequence ends in was written";
  }
}

}  // namespace
}  // namespace krait::ops
