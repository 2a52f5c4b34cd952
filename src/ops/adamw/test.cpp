#include <bit>

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

// A model of tensors of very different sizes, some in halves, some without decay.
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
      if (i % 2) put_in_halves(a);
      a.decay = i % 3 ? 0.1f : 0.0f;
      a.rate = i % 4 == 2 ? 0.25f : 1.0f;
      tensors.push_back(a);
    }
    scalars = t.tensor({ops::kStepScalars}, kF32);
  }
  void put_in_halves(AdamwTensors& a) {
    const Tensor p = a.value;
    a.value = t.tensor(p.shape, DType::bf16);
    a.low = t.tensor(p.shape, DType::bf16);
    ops::split(t.c, p, a.value, a.low, a.v);
    synchronize(t.c.device, nullptr);
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

// The numbers that are trained.
std::vector<float> numbers(const AdamwTensors& a) {
  std::vector<float> p(static_cast<size_t>(a.value.numel()));
  if (a.low) {
    ops::join(a.value, a.low, a.v, Tensor(p.data(), kF32, a.value.shape));
  } else {
    std::copy_n(a.value.as<float>(), p.size(), p.begin());
  }
  return p;
}

Values values(const AdamwTensors& a) {
  const std::vector<float> p = numbers(a);
  return {p.begin(), p.end()};
}

uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }

const std::vector<int64_t> kSizes = {0, 1, 2, 31, 97, 257, 1025, 65536, 65537, 200000};

TEST(Adamw, TenStepsWithinTwiceAPlainRun) {
  Model q(kSizes);
  std::vector<reference::AdamwState<double>> exact;
  std::vector<reference::AdamwState<float>> plain;
  for (const AdamwTensors& a : q.tensors) {
    const Values v = values(a);
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
    append(got[0], values(a)), append(got[1], to_double(a.m)), append(got[2], to_double(a.v));
    for (double& v : got[2]) v = std::abs(v);
    append(want[0], exact[i].value), append(want[1], exact[i].m), append(want[2], exact[i].v);
    append(naive[0], to_double(plain[i].value)), append(naive[1], to_double(plain[i].m));
    append(naive[2], to_double(plain[i].v));
  }
  const char* names[] = {"value", "m", "v"};
  for (int i = 0; i < 3; ++i) expect_within_twice_plain(got[i], want[i], naive[i], kF32, names[i]);
}

// Numbers with all 2^16 lower halves below odd and even upper halves of either sign, that are not normal, and that round
// up to infinity or to the next power of two.
std::vector<float> all_halves() {
  std::vector<float> p;
  for (const uint32_t high : {0x0000u, 0x8000u, 0x0001u, 0x007fu, 0x3f80u, 0x3f81u, 0xbf80u,
                              0xbf81u, 0x3fffu, 0xbfffu, 0x7f7fu, 0xff7fu, 0x7f7eu})
    for (uint32_t low = 0; low < 0x10000u; ++low)
      p.push_back(std::bit_cast<float>(high << 16 | low));
  for (const uint32_t infinity : {0x7f800000u, 0xff800000u})
    p.push_back(std::bit_cast<float>(infinity));
  return p;
}

TEST(Adamw, HalvesAreTheRoundedNumberAndKeepEveryBit) {
  const std::vector<float> p = all_halves();
  const auto n = static_cast<int64_t>(p.size());
  Model q({n});
  AdamwTensors& a = q.tensors[0];
  std::copy(p.begin(), p.end(), a.value.as<float>());
  for (int64_t i = 0; i < n; ++i) set(a.v, i, i % 3 ? -1.5 : 0.0);  // signs of other numbers
  q.put_in_halves(a);
  const std::vector<float> got = numbers(a);
  for (int64_t i = 0; i < n; ++i) {
    const auto j = static_cast<size_t>(i);
    ASSERT_EQ(bits_of(got[j]), bits_of(p[j])) << i;
    ASSERT_EQ(a.value.as<bf16>()[i].bits, bf16(p[j]).bits) << i;
    ASSERT_EQ(std::abs(get(a.v, i)), i % 3 ? 1.5 : 0.0) << i;
  }
}

TEST(Adamw, HalvesAreTrainedAsTheWholeNumberIs) {
  std::vector<float> p = all_halves();
  p.resize(p.size() - 2);  // without the infinities
  const auto n = static_cast<int64_t>(p.size());
  Model whole({n}), halves({n});
  for (Model* q : {&whole, &halves}) std::copy(p.begin(), p.end(), q->tensors[0].value.as<float>());
  halves.put_in_halves(halves.tensors[0]);
  const AdamwTensors &a = whole.tensors[0], &b = halves.tensors[0];
  size_t moved = 0, ties = 0;
  for (int k = 1; k <= 12; ++k) {
    // A rate of 0 leaves all lower halves there are; a small one makes other ties.
    const float lr = k < 3 ? 0.0f : 1e-3f;
    for (Model* q : {&whole, &halves}) {
      for (int64_t i = 0; i < n; ++i)
        set(q->tensors[0].grad, i, i % 5 ? 1e-3 * static_cast<double>((i * k) % 17 - 8) : 0.0);
      q->step(k, lr, 1.0f);
    }
    synchronize(test_device(), nullptr);
    const std::vector<float> got = numbers(b);
    for (int64_t i = 0; i < n; ++i) {
      const float want = a.value.as<float>()[i];
      ASSERT_EQ(bits_of(got[static_cast<size_t>(i)]), bits_of(want)) << k << ' ' << i;
      ASSERT_EQ(b.value.as<bf16>()[i].bits, bf16(want).bits) << k << ' ' << i;
      ASSERT_EQ(bits_of(b.m.as<float>()[i]), bits_of(a.m.as<float>()[i])) << k << ' ' << i;
      ASSERT_EQ(bits_of(std::abs(b.v.as<float>()[i])), bits_of(a.v.as<float>()[i]))
          << k << ' ' << i;
      moved += bits_of(want) != bits_of(p[static_cast<size_t>(i)]);
      ties += (bits_of(want) & 0xffff) == 0x8000;
    }
  }
  EXPECT_GT(moved, p.size());
  EXPECT_GT(ties, 50u);
}

// Decay acts on the weight alone, not through the moments: with no gradient, m and v stay 0.
TEST(Adamw, T3_DecayIsDecoupledAndOnlyWhereAsked) {
  Model q({3, 40});
  for (const AdamwTensors& a : q.tensors)
    for (int64_t j = 0; j < a.grad.numel(); ++j) set(a.grad, j, 0);
  const Values before0 = values(q.tensors[0]), before1 = values(q.tensors[1]);
  q.step(1, 0.5f, 1.0f);
  expect_same_bits(values(q.tensors[0]), before0, "no decay");
  Values decayed = before1;
  for (double& v : decayed) v *= 1 - 0.5 * 0.1;
  expect_relative(values(q.tensors[1]), decayed, 1e-7, "decay");
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
      for (double v : values(a)) now.push_back(v);
    if (threads == 1) first = now;
    expect_same_bits(now, first, fmt::format("{} threads", threads));
  }
}

TEST(Adamw, NamesTheTensorThatDoesNotFit) {
  Model q({4, 5});
  q.tensors[1].m = q.tensors[0].m;
  EXPECT_EQ(error_of([&] { q.step(1, 0.1f, 1); }),
            "[adamw] m of tensor 1: expected contiguous float32 (5,), got float32 (4,)");
}

}  // namespace
}  // namespace krait::testing
