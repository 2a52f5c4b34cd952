#include "krait/ops/norm/norm.h"

#include "krait/ops/norm/reference.h"
#include "krait/testing/remade.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

struct Case {
  NormKind kind = NormKind::rms;
  int64_t rows = 1, D = 1;
  bool w = true, b = false, residual = false;
  DType x = DType::f32, out = DType::f32;
  bool strided = false;
  double mean = 0.3;
};

std::string describe(const Case& k) {
  return fmt::format("{} rows={} D={} w={} b={} residual={} {} to {} strided={}",
                     k.kind == NormKind::rms ? "rms" : "layer", k.rows, k.D, k.w, k.b, k.residual,
                     name_of(k.x), name_of(k.out), k.strided);
}

struct Norm {
  static constexpr float kEps = 1e-5f;
  Case k;
  TestContext test;
  Tensor x, w, b, residual;
  NormResult result;

  explicit Norm(const Case& c, bool record = false) : k(c), test(record) {
    x = test.random({k.rows, k.D}, k.x, 1, {.mean = k.mean, .strided = k.strided});
    if (k.w) w = test.random({k.D}, DType::f32, 2, {.mean = 1});
    if (k.b) b = test.random({k.D}, DType::f32, 3);
    if (k.residual) residual = test.random({k.rows, k.D}, DType::f32, 4);
  }
  void run() { result = norm(test.c, k.kind, x, w, b, kEps, k.out, residual); }

  // y, then the sum.
  template <class T>
  std::vector<T> reference(std::vector<T> s, const std::vector<T>& r, const std::vector<T>& wv,
                           const std::vector<T>& bv) const {
    for (size_t i = 0; i < r.size(); ++i) s[i] += r[i];
    std::vector<T> y = norm_reference<T>(k.kind == NormKind::layer, k.D, kEps, s, wv, bv);
    if (!r.empty()) y.insert(y.end(), s.begin(), s.end());
    return y;
  }
  Values exact() const {
    return reference(to_double(x), to_double(residual), to_double(w), to_double(b));
  }
  Values plain() const {
    return to_double(reference(to_float(x), to_float(residual), to_float(w), to_float(b)));
  }
  Values got() const {
    Values v = to_double(result.y);
    const Values s = to_double(result.sum);
    v.insert(v.end(), s.begin(), s.end());
    return v;
  }
};

void expect_matches_reference(const Case& k) {
  SCOPED_TRACE(describe(k));
  Norm n(k);
  n.run();
  expect_within_twice_plain(n.got(), n.exact(), n.plain(), k.out, "y and sum");
}

TEST(Norm, MatchesDoubleAtEverySize) {
  for (NormKind kind : {NormKind::rms, NormKind::layer}) {
    for (int64_t D : {1, 2, 31, 97, 257, 1025})
      for (int64_t rows : {0, 1, 2, 31, 97})
        expect_matches_reference(
            {.kind = kind, .rows = rows, .D = D, .b = rows % 2 == 1, .residual = D % 2 == 1});
    expect_matches_reference({.kind = kind, .rows = 1025, .D = 31, .strided = true});
    expect_matches_reference({.kind = kind, .rows = 3, .D = 16384, .residual = true});
  }
}

TEST(Norm, MatchesDoubleInEveryDtype) {
  for (DType x : {DType::f32, DType::bf16})
    for (DType out : {DType::f32, DType::bf16})
      for (bool residual : {false, true})
        for (NormKind kind : {NormKind::rms, NormKind::layer})
          expect_matches_reference({.kind = kind,
                                    .rows = 33,
                                    .D = 97,
                                    .residual = residual,
                                    .x = x,
                                    .out = out,
                                    .strided = true});
}

// Falcon-Mamba: no weight, over a slice of x_proj's output.
TEST(Norm, T9_WithoutWeightOverASlice) {
  expect_matches_reference({.rows = 40, .D = 16, .w = false, .strided = true});
  expect_matches_reference(
      {.rows = 40, .D = 48, .w = false, .x = DType::bf16, .out = DType::bf16, .strided = true});
}

// A large common part must not eat the variance: two passes, not E[s^2] - E[s]^2.
TEST(Norm, LayerOfLargeMean) {
  expect_matches_reference({.kind = NormKind::layer, .rows = 5, .D = 257, .mean = 1000});
}

TEST(Norm, RowOfZerosIsZero) {
  Norm n({.rows = 1, .D = 37});
  for (int64_t i = 0; i < 37; ++i) set(n.x, i, 0);
  n.run();
  for (double v : n.got()) EXPECT_EQ(v, 0);
}

// The sum stays float32 when everything around it is bfloat16.
TEST(Norm, T34_ResidualStaysFloat32) {
  Norm n({.rows = 2, .D = 40, .residual = true, .x = DType::bf16, .out = DType::bf16});
  n.run();
  ASSERT_EQ(n.result.sum.dtype, DType::f32);
  for (int64_t i = 0; i < n.x.numel(); ++i)
    EXPECT_EQ(get(n.result.sum, i),
              static_cast<float>(get(n.x, i)) + static_cast<float>(get(n.residual, i)));
}

// Gradients of sum(cotangent * (y, sum)) with respect to the inputs named ("xrwb").
std::vector<Values> gradients(Norm& n, const std::string& wanted) {
  const auto drop = [&](Tensor& t, char name) {
    if (wanted.find(name) == std::string::npos) t = t.detach();
  };
  drop(n.x, 'x');
  drop(n.residual, 'r');
  drop(n.w, 'w');
  drop(n.b, 'b');
  n.run();
  n.test.seed_grad(n.result.y, random_values(n.result.y.numel(), 11));
  if (n.result.sum) n.test.seed_grad(n.result.sum, random_values(n.result.sum.numel(), 12));
  n.test.tape.backward(n.test.c);
  std::vector<Values> all;
  for (const Tensor* t : {&n.x, &n.residual, &n.w, &n.b})
    all.push_back(to_double(n.test.tape.grad(*t)));
  return all;
}

void expect_gradients(const Case& k) {
  SCOPED_TRACE(describe(k));
  Norm shape(k);
  const Values inputs[] = {to_double(shape.x), to_double(shape.residual), to_double(shape.w),
                           to_double(shape.b)};
  Values cotangent = random_values(static_cast<int64_t>(inputs[0].size()), 11);
  // What the op reads is the rounded cotangent.
  if (k.out == DType::bf16)
    for (double& v : cotangent) v = static_cast<float>(bf16(static_cast<float>(v)));
  const Values more = random_values(shape.residual ? shape.residual.numel() : 0, 12);
  cotangent.insert(cotangent.end(), more.begin(), more.end());
  std::vector<Values> exact;
  for (size_t which = 0; which < 4; ++which) {
    exact.push_back(complex_step_gradient(
        [&](const ComplexValues& z) {
          ComplexValues in[4];
          for (size_t i = 0; i < 4; ++i) in[i] = i == which ? z : to_complex(inputs[i]);
          return dot(shape.reference(in[0], in[1], in[2], in[3]), cotangent);
        },
        inputs[which]));
  }
  for (const std::string wanted : {"x", "r", "w", "b", "xr", "xrwb"}) {
    if ((wanted == "w" && !k.w) || (wanted == "b" && !k.b) || (wanted[0] == 'r' && !k.residual))
      continue;
    Norm n(k, true);
    const std::vector<Values> got = gradients(n, wanted);
    for (size_t i = 0; i < 4; ++i) {
      if (wanted.find("xrwb"[i]) == std::string::npos) {
        EXPECT_TRUE(got[i].empty());
        continue;
      }
      // Only the gradient of x is ever rounded to bfloat16.
      const double tolerance = i == 0 && k.x == DType::bf16 ? rounding(DType::bf16) + 3e-6 : 3e-6;
      // Terms of size one cancel where D = 1.
      EXPECT_LE(max_abs_error(got[i], exact[i]), tolerance * std::max(1.0, max_abs(exact[i])))
          << "gradient "
          << "xrwb"[i] << " of " << wanted;
    }
  }
}

TEST(NormGradient, OfEveryInput) {
  for (NormKind kind : {NormKind::rms, NormKind::layer}) {
    for (bool residual : {false, true}) {
      expect_gradients({.kind = kind, .rows = 3, .D = 21, .b = true, .residual = residual});
      expect_gradients({.kind = kind, .rows = 2, .D = 35, .residual = residual, .strided = true});
      expect_gradients({.kind = kind,
                        .rows = 3,
                        .D = 19,
                        .residual = residual,
                        .x = DType::bf16,
                        .out = DType::bf16});
    }
    expect_gradients({.kind = kind, .rows = 2, .D = 1, .b = true});
  }
}

TEST(NormGradient, T38_WithoutWeight) {
  expect_gradients({.rows = 3, .D = 18, .w = false});
  expect_gradients({.rows = 3, .D = 18, .w = false, .strided = true});
  expect_gradients(
      {.kind = NormKind::layer, .rows = 3, .D = 18, .w = false, .b = true, .residual = true});
}

TEST(NormGradient, T14_AcrossPiecesOfRows) {
  expect_gradients({.rows = 130, .D = 2, .b = true, .residual = true});
}

// Only the sum is used after: its gradient passes through to both.
TEST(NormGradient, OfTheSumAlone) {
  Norm n({.rows = 4, .D = 9, .residual = true}, true);
  n.run();
  const Values cotangent = random_values(36, 5);
  n.test.seed_grad(n.result.sum, cotangent);
  n.test.tape.backward(n.test.c);
  const Tensor dx = n.test.tape.grad(n.x), dr = n.test.tape.grad(n.residual);
  for (int64_t i = 0; i < 36; ++i) {
    EXPECT_EQ(get(dx, i), static_cast<float>(cotangent[static_cast<size_t>(i)]));
    EXPECT_EQ(get(dr, i), get(dx, i));
  }
}

// The last norm of a model: nobody uses the sum.
TEST(NormGradient, OfYAlone) {
  Norm with({.rows = 4, .D = 9, .residual = true}, true);
  with.run();
  with.test.seed_grad(with.result.y, random_values(36, 5));
  with.test.tape.backward(with.test.c);
  expect_same_bits(to_double(with.test.tape.grad(with.x)),
                   to_double(with.test.tape.grad(with.residual)), "dx, dr");
  EXPECT_GT(max_abs(to_double(with.test.tape.grad(with.x))), 0);
}

// A stream through three sums: one buffer, and the gradients of a plain composition.
TEST(NormGradient, ResidualStreamOfSeveralLayers) {
  constexpr int64_t n = 12;
  TestContext test(true);
  Tensor stream = test.random({1, n}, DType::f32, 1);
  const Tensor w = test.random({n}, DType::f32, 2, {.mean = 1});
  const Tensor first = stream, start = test.random({1, n}, DType::f32, 3);
  Tensor x = start;
  for (int layer = 0; layer < 3; ++layer) {
    const NormResult r = norm(test.c, NormKind::rms, x, w, {}, 1e-5f, DType::f32, stream);
    x = r.y;
    stream = r.sum;
  }
  test.seed_grad(x, random_values(n, 11));
  test.tape.backward(test.c);
  const Values sv = to_double(first), xv = to_double(start), wv = to_double(w),
               cotangent = random_values(n, 11);
  const auto f = [&](const ComplexValues& s0, const ComplexValues& x0) {
    ComplexValues s = s0, v = x0;
    for (int layer = 0; layer < 3; ++layer) {
      for (size_t i = 0; i < s.size(); ++i) s[i] += v[i];
      v = norm_reference<Complex>(false, n, 1e-5f, s, to_complex(wv), {});
    }
    return dot(v, cotangent);
  };
  expect_relative(
      to_double(test.tape.grad(first)),
      complex_step_gradient([&](const ComplexValues& z) { return f(z, to_complex(xv)); }, sv), 2e-6,
      "stream");
  expect_relative(
      to_double(test.tape.grad(start)),
      complex_step_gradient([&](const ComplexValues& z) { return f(to_complex(sv), z); }, xv), 2e-6,
      "x");
}

TEST(Norm, SameBitsForAnyNumberOfThreadsAndTwice) {
  for (const Case& k :
       {Case{.rows = 300, .D = 97, .b = true, .residual = true}, Case{.kind = NormKind::layer,
                                                                 .rows = 200,
                                                                 .D = 130,
                                                                 .x = DType::bf16,
                                                                 .out = DType::bf16,
                                                                 .strided = true}}) {
    std::vector<Values> first;
    for (int threads : {1, 1, 2, 4}) {
      const ThreadCount scope(threads);
      Norm n(k, true);
      std::vector<Values> all = gradients(n, "xrwb");
      all.push_back(n.got());
      if (first.empty()) first = all;
      for (size_t i = 0; i < all.size(); ++i)
        expect_same_bits(all[i], first[i], fmt::format("{} threads, {}", threads, i));
    }
  }
}

TEST(Norm, T15_OffsetsOf64Bits) {
  KRAIT_ONLY_ON_CPU("reads memory that was never touched");
  constexpr int64_t kFar = (int64_t{1} << 31) / 4 + 16;
  Arena huge(3 * kFar * sizeof(float));
  Tensor x(huge.take_low(2 * kFar * sizeof(float)), DType::f32, {2, kFar});
  x = x.slice(1, 0, 5);
  for (int64_t i = 0; i < 10; ++i) set(x, i, static_cast<double>(i) * 0.1);
  TestContext test;
  Tensor dense = test.tensor({2, 5}, DType::f32);
  copy_host(x, dense);
  expect_same_bits(norm(test.c, NormKind::rms, x, {}, {}, 1e-5f, DType::f32).y,
                   norm(test.c, NormKind::rms, dense, {}, {}, 1e-5f, DType::f32).y, "y");
}

TEST(Norm, ErrorsSayWhatWasExpected) {
  Norm n({.rows = 2, .D = 5});
  const auto refuses = [&](const Tensor& x, const Tensor& w, const Tensor& residual,
                           const std::string& part) {
    expect_error([&] { norm(n.test.c, NormKind::rms, x, w, {}, 1e-5f, DType::f32, residual); },
                 part);
  };
  refuses(n.x, n.test.tensor({4}, DType::f32), {},
          "[norm] w: expected contiguous float32 (5,), got float32 (4,)");
  refuses(n.x, n.test.tensor({5}, DType::bf16), {}, "got bfloat16 (5,)");
  refuses(n.test.tensor({2, 5}, DType::i32), n.w, {},
          "[norm] x: expected float32 or bfloat16 (..., D)");
  refuses(n.x, n.w, n.test.tensor({2, 4}, DType::f32), "[norm] residual: expected float32 (2, 5)");
  refuses(n.x, n.w, n.test.tensor({2, 5}, DType::bf16), "got bfloat16 (2, 5)");
}

TEST(Norm, PlanningTouchesNothingAndTakesTheSameMemory) {
  const auto run = [](Arena arena) {
    Tape tape;
    Context c{.arena = &arena, .tape = &tape};
    Tensor x = c.alloc({100, 40}, DType::bf16), residual = c.alloc({100, 40}, DType::f32),
           w = c.alloc({40}, DType::f32);
    if (!c.planning())
      for (const Tensor& t : {x, residual, w}) std::memset(t.data, 0, t.bytes());
    tape.watch(x);
    tape.watch(w);
    tape.watch(residual);
    const NormResult r = norm(c, NormKind::layer, x, w, {}, 1e-5f, DType::bf16, residual);
    tape.seed(c, r.y);
    tape.backward(c);
    return arena.peak();
  };
  EXPECT_EQ(run(Arena::planning()), run(Arena(1 << 20)));
}

TEST(Norm, ALayerThatWritesYAgainHasTheSameGradients) {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const int64_t D : {96, 130, 2048}) {
      TestContext t;
      Tensor x = t.random({70, D}, DType::f32, 1), w = t.random({D}, DType::f32, 2);
      expect_same_gradients_where_y_is_remade(
          {&x, &w}, t.random({48, D}, dtype, 3), [&](Context& c, bool remake_y) {
            return norm(c, NormKind::rms, x, w, {}, 1e-5f, dtype, {}, remake_y).y;
          });
    }
}

}  // namespace
}  // namespace krait::ops
