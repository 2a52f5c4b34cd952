#include "krait/ops/cross_entropy/cross_entropy.h"
#include "krait/ops/cross_entropy/reference.h"
#include "krait/testing/op_test.h"

namespace krait::testing {
namespace {

using ops::linear_cross_entropy;
namespace reference = ops::reference;

constexpr DType kF32 = DType::f32, kBf16 = DType::bf16;

struct Head {
  Head(int64_t M, int64_t V, int64_t D, DType type, bool record = true, float scale = 1,
       size_t arena = 16 << 20)
      : t(record, arena) {
    h = t.random({1, M, D}, type, 1);
    w = t.random({V, D}, type, 2);
    if (record) w.var->grad_dtype = kF32;  // as a parameter's
    targets = t.tensor({1, M}, DType::i32);
    const Philox rng{3, 4};
    for (int64_t i = 0; i < M; ++i) {
      const auto id =
          static_cast<int32_t>(rng.words(static_cast<uint64_t>(i))[0] % static_cast<uint32_t>(V));
      targets.as<int32_t>()[i] = i % 5 == 3 ? -1 : id;
    }
    result = linear_cross_entropy(t.c, h, w, targets, scale);
  }
  std::vector<int32_t> ids() const {
    const auto* p = static_cast<const int32_t*>(targets.data);
    return {p, p + targets.numel()};
  }
  TestContext t;
  Tensor h, w, targets;
  ops::CrossEntropyResult result;
};

std::vector<float> to_float(const Values& v) { return {v.begin(), v.end()}; }

TEST(CrossEntropy, NllWithinTwiceAPlainRun) {
  for (DType type : {kF32, kBf16})
    for (int64_t M : {0, 1, 2, 31, 97, 257})
      for (auto [V, D] :
           {std::pair<int64_t, int64_t>{1, 3}, {2, 1}, {31, 31}, {97, 64}, {257, 5}, {4100, 2}}) {
        const Head q(M, V, D, type, false, 0.5f);
        const Values exact =
            reference::cross_entropy(to_double(q.h), to_double(q.w), q.ids(), V, D);
        const auto plain = reference::cross_entropy(to_float(to_double(q.h)),
                                                    to_float(to_double(q.w)), q.ids(), V, D);
        const std::string what = fmt::format("M{} V{} D{} {}", M, V, D, name_of(type));
        EXPECT_EQ(q.result.nll.shape, (Shape{1, M}));
        expect_within_twice_plain(to_double(q.result.nll), exact, to_double(plain), kF32, what);
        double sum = 0;
        for (double v : to_double(q.result.nll)) sum += v;
        EXPECT_EQ(get(q.result.loss, 0), static_cast<float>(0.5 * sum)) << what;
      }
}

TEST(CrossEntropy, GradientsByComplexStep) {
  constexpr float kScale = 0.125f;
  for (DType type : {kF32, kBf16})
    for (auto [M, V, D] :
         {std::tuple<int64_t, int64_t, int64_t>{1, 2, 3}, {9, 31, 6}, {31, 17, 5}}) {
      Head q(M, V, D, type, true, kScale);
      const ComplexValues h = to_complex(to_double(q.h)), w = to_complex(to_double(q.w));
      const auto loss = [&, V = V, D = D](const ComplexValues& h_, const ComplexValues& w_) {
        Complex sum = 0;
        for (const Complex& v : reference::cross_entropy(h_, w_, q.ids(), V, D)) sum += v;
        return sum * static_cast<double>(kScale);
      };
      // float32: a few roundings. bfloat16: the gradient of the logits is rounded, then dh once more.
      const double tolerance = type == kF32 ? 1e-6 : 0x1p-7;
      expect_relative(to_double(q.t.tape.grad(q.h)),
                      complex_step_gradient([&](auto& v) { return loss(v, w); }, to_double(q.h)),
                      tolerance, "dh");
      expect_relative(to_double(q.t.tape.grad(q.w)),
                      complex_step_gradient([&](auto& v) { return loss(h, v); }, to_double(q.w)),
                      tolerance, "dw");
      for (int64_t i = 3; i < M; i += 5)  // skipped rows
        for (int64_t d = 0; d < D; ++d) EXPECT_EQ(get(q.t.tape.grad(q.h), i * D + d), 0);
    }
}

// Rows that two, four and eight blocks of a GPU share, and more rows than are there at once:
// dw[v] = scale Σ_i h[i] (softmax(logits[i])[v] - [v = target]).
TEST(CrossEntropy, RowsOfLargeVocabularies) {
  for (DType type : {kF32, kBf16})
    for (int64_t V : {16384, 16385, 50280, 60000, 120000}) {
      const int64_t M = V == 16384 ? 400 : 9;
      Head q(M, V, 1, type, true, 0.25f, size_t{64} << 20);
      const Values h = to_double(q.h), w = to_double(q.w);
      const Values exact = reference::cross_entropy(h, w, q.ids(), V, 1);
      const auto plain = reference::cross_entropy(to_float(h), to_float(w), q.ids(), V, 1);
      const std::string what = fmt::format("V{} {}", V, name_of(type));
      expect_within_twice_plain(to_double(q.result.nll), exact, to_double(plain), kF32, what);
      Values dw(static_cast<size_t>(V));
      for (size_t i = 0; i < static_cast<size_t>(M); ++i) {
        const int32_t target = q.ids()[i];
        if (target < 0) continue;
        const auto at = static_cast<size_t>(target);
        for (size_t v = 0; v < dw.size(); ++v)
          dw[v] +=
              0.25 * h[i] * (std::exp(h[i] * (w[v] - w[at]) - exact[i]) - (v == at ? 1.0 : 0.0));
      }
      expect_relative(to_double(q.t.tape.grad(q.w)), dw, type == kF32 ? 1e-6 : 0x1p-7, what);
    }
}

// A vocabulary so large that the rows take several blocks: the same as each part by itself.
TEST(CrossEntropy, BlocksOfRowsAddUp) {
  const bool gpu = test_device().type == Device::cuda;  // where blocks are larger
  const int64_t M = gpu ? 11000 : 1025, V = 20000, D = 3, kParts = 5;
  const size_t kArena = size_t{gpu ? 700u : 64u} << 20;
  for (DType type : {kF32, kBf16}) {
    Head q(M, V, D, type, true, 1, kArena);
    Values nll, dh, dw(static_cast<size_t>(V * D));
    for (int64_t p = 0; p < kParts; ++p) {
      const int64_t begin = p * M / kParts, end = (p + 1) * M / kParts;
      TestContext t(true, kArena);
      Tensor h = q.h.reshape({M, D}).slice(0, begin, end).detach(), w = q.w.detach();
      t.tape.watch(h);
      t.tape.watch(w);
      w.var->grad_dtype = kF32;
      const auto r =
          linear_cross_entropy(t.c, h, w, q.targets.reshape({M}).slice(0, begin, end), 1);
      for (double v : to_double(r.nll)) nll.push_back(v);
      for (double v : to_double(t.tape.grad(h))) dh.push_back(v);
      const Values part = to_double(t.tape.grad(w));
      for (size_t i = 0; i < dw.size(); ++i) dw[i] += part[i];
    }
    expect_relative(to_double(q.result.nll), nll, 1e-6, "nll");
    expect_relative(to_double(q.t.tape.grad(q.h)), dh, type == kF32 ? 1e-5 : 2 * rounding(kBf16),
                    "dh");  // neighbours
    expect_relative(to_double(q.t.tape.grad(q.w)), dw, 1e-5, "dw");
  }
}

TEST(CrossEntropy, AddsToTheGradientOfTheWeight) {  // a tied embedding has one already
  constexpr int64_t M = 20, V = 33, D = 8;
  Head q(M, V, D, kF32);
  const Values once = to_double(q.t.tape.grad(q.w)), dh = to_double(q.t.tape.grad(q.h));
  linear_cross_entropy(q.t.c, q.h, q.w, q.targets, 1);
  Values twice = once, dh2 = dh;
  for (double& v : twice) v *= 2;
  for (double& v : dh2) v *= 2;
  expect_relative(to_double(q.t.tape.grad(q.w)), twice, 1e-6, "dw");
  expect_relative(to_double(q.t.tape.grad(q.h)), dh2, 1e-6, "dh");
}

TEST(CrossEntropy, SameBitsForAnyNumberOfThreads) {
  for (DType type : {kF32, kBf16})
    for (auto [M, V, D] : {std::tuple<int64_t, int64_t, int64_t>{700, 20000, 4}, {97, 257, 64}}) {
      Values first[3];
      for (int threads : {1, 2, 4}) {
        const ThreadCount count(threads);
        Head q(M, V, D, type, true, 1, size_t{64} << 20);
        const Values now[3] = {to_double(q.result.nll), to_double(q.t.tape.grad(q.h)),
                               to_double(q.t.tape.grad(q.w))};
        for (int i = 0; i < 3; ++i) {
          if (threads == 1) first[i] = now[i];
          expect_same_bits(now[i], first[i], fmt::format("{} threads, result {}", threads, i));
        }
      }
    }
}

TEST(CrossEntropy, LargeLogitsStayFinite) {
  TestContext t(true);
  const Tensor h = t.from({1}, {1, 1}, kF32), w = t.from({1e4, -1e4, 1e4 - 1}, {3, 1}, kF32);
  Tensor target = t.tensor({1}, DType::i32);
  target.as<int32_t>()[0] = 1;
  const auto r = linear_cross_entropy(t.c, h, w, target, 1);
  EXPECT_NEAR(get(r.nll, 0), 2e4 + std::log1p(std::exp(-1.0)), 2e-3);  // float32 at 2e4
  const double p = 1 / (1 + std::exp(-1.0));
  EXPECT_NEAR(get(t.tape.grad(w), 0), p, 1e-6);
  EXPECT_NEAR(get(t.tape.grad(w), 1), -1, 1e-6);
}

TEST(CrossEntropy, NotANumberReachesTheLoss) {
  TestContext t;
  const Tensor h = t.from({1, std::nan("")}, {2, 1}, kF32), w = t.random({40, 1}, kF32, 1);
  Tensor target = t.tensor({2}, DType::i32);
  target.as<int32_t>()[0] = target.as<int32_t>()[1] = 7;
  const auto r = linear_cross_entropy(t.c, h, w, target, 1);
  EXPECT_TRUE(std::isfinite(get(r.nll, 0)));
  EXPECT_TRUE(std::isnan(get(r.nll, 1)));
  EXPECT_TRUE(std::isnan(get(r.loss, 0)));
}

TEST(CrossEntropy, RefusesTargetsOutsideTheVocabulary) {
  KRAIT_ONLY_ON_CPU("values on a GPU are not looked at");
  TestContext t;
  const Tensor h = t.random({2, 3}, kF32, 1), w = t.random({5, 3}, kF32, 2);
  Tensor target = t.tensor({2}, DType::i32);
  for (int32_t bad : {5, -2}) {
    target.as<int32_t>()[0] = 4;
    target.as<int32_t>()[1] = bad;
    EXPECT_EQ(error_of([&] { linear_cross_entropy(t.c, h, w, target, 1); }),
              fmt::format("[cross_entropy] targets: row 1 holds {}, expected -1 or 0 to 4", bad));
  }
}

}  // namespace
}  // namespace krait::testing
