#include "krait/ops/adamw/adamw.h"
#include "krait/ops/adamw/reference.h"
#include "krait/testing/op_test.h"

namespace krait::testing {
namespace {

using ops::AdamwTensors;
using ops::clip_grad_norm;
namespace reference = ops::reference;

constexpr DType kF32 = DType::f32;

std::vector<float> to_float(const Values& v) { return {v.begin(), v.end()}; }

// A model of tensors of very different sizes, some with a bfloat16 copy, some without decay.
struct Model {
  explicit Model(const std::vector<int64_t>& sizes) {
    for (size_t i = 0; i < sizes.size(); ++i) {
      AdamwTensors a;
      a.value = t.random({sizes[i]}, kF32, 10 + i);
      a.grad = t.random({sizes[i]}, kF32, 50 + i);
      a.m = t.tensor({sizes[i]}, kF32);
      a.v = t.tensor({sizes[i]}, kF32);
      for (int64_t j = 0; j < sizes[i]; ++j) {
        set(a.m, j, 0);
        set(a.v, j, 0);
      }
      if (i % 2) a.rounded = t.tensor({sizes[i]}, DType::bf16);
      a.decay = i % 3 ? 0.1f : 0.0f;
      a.rate = i % 4 == 2 ? 0.25f : 1.0f;
      tensors.push_back(a);
    }
    scalars = t.tensor({ops::kStepScalars}, kF32);
  }
  void step(int k, float lr, float clip) {
    float* s = scalars.as<float>();
    s[ops::kLearningRate] = lr;
    s[ops::kBias1] = static_cast<float>(1 - std::pow(static_cast<double>(options.beta1), k));
    s[ops::kBias2] = static_cast<float>(1 - std::pow(static_cast<double>(options.beta2), k));
    s[ops::kClip] = clip;
    adamw(t.c, tensors, options, scalars);
  }
  std::vector<Tensor> grads() const {
    std::vector<Tensor> g;
    for (const AdamwTensors& a : tensors) g.push_back(a.grad);
    return g;
  }
  TestContext t;
  ops::AdamwOptions options;
  std::vector<AdamwTensors> tensors;
  Tensor scalars;
};

const std::vector<int64_t> kSizes = {0, 1, 2, 31, 97, 257, 1025, 65536, 65537, 200000};

TEST(Adamw, TenStepsWithinTwiceAPlainRun) {
  Model q(kSizes);
  std::vector<reference::AdamwState<double>> exact;
  std::vector<reference::AdamwState<float>> plain;
  for (const AdamwTensors& a : q.tensors) {
    const Values v = to_double(a.value);
    exact.push_back({v, Values(v.size()), Values(v.size())});
    plain.push_back({to_float(v), std::vector<float>(v.size()), std::vector<float>(v.size())});
  }
  for (int k = 1; k <= 10; ++k) {
    const float lr = 0.01f * static_cast<float>(k), clip = k % 2 ? 1.0f : 0.3f;
    for (size_t i = 0; i < q.tensors.size(); ++i) {
      const Values g =
          random_values(q.tensors[i].grad.numel(), static_cast<uint64_t>(k) * 100 + i, 1e-3);
      for (size_t j = 0; j < g.size(); ++j) set(q.tensors[i].grad, static_cast<int64_t>(j), g[j]);
      const Values seen = to_double(q.tensors[i].grad);
      reference::adamw<double>(exact[i], seen, clip, q.tensors[i].rate * lr, q.options.beta1,
                               q.options.beta2, q.options.eps, q.tensors[i].decay);
      reference::adamw<float>(plain[i], to_float(seen), clip, q.tensors[i].rate * lr,
                              q.options.beta1, q.options.beta2, q.options.eps, q.tensors[i].decay);
    }
    q.step(k, lr, clip);
  }
  Values got[3], want[3], naive[3];  // value, m, v of all tensors
  const auto append = [](Values& to, const Values& v) { to.insert(to.end(), v.begin(), v.end()); };
  for (size_t i = 0; i < q.tensors.size(); ++i) {
    const AdamwTensors& a = q.tensors[i];
    append(got[0], to_double(a.value)), append(got[1], to_double(a.m)),
        append(got[2], to_double(a.v));
    append(want[0], exact[i].value), append(want[1], exact[i].m), append(want[2], exact[i].v);
    append(naive[0], to_double(plain[i].value)), append(naive[1], to_double(plain[i].m));
    append(naive[2], to_double(plain[i].v));
    for (int64_t j = 0; a.rounded && j < a.value.numel(); ++j)
      ASSERT_EQ(a.rounded.as<bf16>()[j].bits, bf16(a.value.as<float>()[j]).bits);
  }
  const char* names[] = {"value", "m", "v"};
  for (int i = 0; i < 3; ++i) expect_within_twice_plain(got[i], want[i], naive[i], kF32, names[i]);
}

// Decay acts on the weight alone, not through the moments: with no gradient, m and v stay 0.
TEST(Adamw, T3_DecayIsDecoupledAndOnlyWhereAsked) {
  Model q({3, 40});
  for (const AdamwTensors& a : q.tensors)
    for (int64_t j = 0; j < a.grad.numel(); ++j) set(a.grad, j, 0);
  const Values before0 = to_double(q.tensors[0].value), before1 = to_double(q.tensors[1].value);
  q.step(1, 0.5f, 1.0f);
  expect_same_bits(to_double(q.tensors[0].value), before0, "no decay");
  Values decayed = before1;
  for (double& v : decayed) v *= 1 - 0.5 * 0.1;
  expect_relative(to_double(q.tensors[1].value), decayed, 1e-7, "decay");
  EXPECT_EQ(max_abs(to_double(q.tensors[1].m)), 0);
  EXPECT_EQ(max_abs(to_double(q.tensors[1].v)), 0);
}

TEST(Adamw, FirstStepHasTheSizeOfTheLearningRate) {
  Model q({100});
  const Values before = to_double(q.tensors[0].value), g = to_double(q.tensors[0].grad);
  q.step(1, 0.01f, 1.0f);
  for (size_t i = 0; i < g.size(); ++i)
    EXPECT_NEAR(get(q.tensors[0].value, static_cast<int64_t>(i)),
                before[i] - (g[i] > 0 ? 0.01 : -0.01), 1e-6);
}

TEST(ClipGradNorm, FactorOnlyAboveTheLimit) {
  Model q(kSizes);
  double sum = 0;
  for (const AdamwTensors& a : q.tensors)
    for (double g : to_double(a.grad)) sum += g * g;
  const double norm = std::sqrt(sum);
  const float* s = q.scalars.as<float>();
  clip_grad_norm(q.t.c, q.grads(), 2.0f, q.scalars);
  EXPECT_NEAR(s[ops::kGradNorm], norm, 1e-6 * norm);
  EXPECT_FLOAT_EQ(s[ops::kClip], static_cast<float>(2.0 / (norm + 1e-6)));
  for (float limit : {static_cast<float>(norm * 1.01), 0.0f, -1.0f}) {
    clip_grad_norm(q.t.c, q.grads(), limit, q.scalars);
    EXPECT_EQ(s[ops::kClip], 1.0f);
  }
  q.tensors[3].grad.as<float>()[7] = std::nanf("");
  clip_grad_norm(q.t.c, q.grads(), 1.0f, q.scalars);
  EXPECT_TRUE(std::isnan(s[ops::kGradNorm]));  // the trainer stops on it
}

// The weights stay what they were, with nobody on the host to look before they are updated.
TEST(ClipGradNorm, T33_AStepThatIsNotFiniteIsNotTaken) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  const std::vector<std::pair<float, float>> cases = {
      {nan, 1.0f}, {inf, 1.0f}, {1.0f, nan}, {1.0f, inf}};
  for (const auto& [bad_grad, bad_loss] : cases) {
    Model q({40, 3});
    const Tensor losses = q.t.tensor({3}, DType::f32);
    for (int64_t i = 0; i < 3; ++i) set(losses, i, i == 2 ? static_cast<double>(bad_loss) : 1.0);
    set(q.tensors[1].grad, 2, static_cast<double>(bad_grad));
    const Values value = to_double(q.tensors[0].value), m = to_double(q.tensors[0].m);
    clip_grad_norm(q.t.c, q.grads(), 1.0f, q.scalars, losses);
    EXPECT_EQ(get(q.scalars, ops::kClip), 0.0);
    q.step(1, 0.1f, 0.0f);
    expect_same_bits(to_double(q.tensors[0].value), value, "value");
    expect_same_bits(to_double(q.tensors[0].m), m, "m");
  }
}

TEST(ClipGradNorm, SumsManySmallGradientsInFloat64) {
  Model q({1 << 20});
  for (int64_t i = 0; i < 1 << 20; ++i) q.tensors[0].grad.as<float>()[i] = 1e-3f;
  clip_grad_norm(q.t.c, q.grads(), 1.0f, q.scalars);
  EXPECT_NEAR(q.scalars.as<float>()[ops::kGradNorm], 1024 * 1e-3, 2e-7);
}

TEST(Adamw, SameBitsForAnyNumberOfThreads) {
  Values first;
  for (int threads : {1, 2, 4}) {
    const ThreadCount count(threads);
    Model q(kSizes);
    clip_grad_norm(q.t.c, q.grads(), 1.0f, q.scalars);
    const float clip = q.scalars.as<float>()[ops::kClip];
    q.step(1, 0.01f, clip);
    q.step(2, 0.01f, clip);
    Values now = to_double(q.scalars);
    for (const AdamwTensors& a : q.tensors)
      for (double v : to_double(a.value)) now.push_back(v);
    if (threads == 1) first = now;
    expect_same_bits(now, first, fmt::format("{} threads", threads));
  }
}

TEST(Adamw, NamesTheTensorThatDoesNotFit) {
  Model q({4, 5});
  q.tensors[1].m = q.tensors[0].m;
  try {
    q.step(1, 0.1f, 1);
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(),
                 "[adamw] m of tensor 1: expected contiguous float32 (5,), got float32 (4,)");
  }
}

}  // namespace
}  // namespace krait::testing
