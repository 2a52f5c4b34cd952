#include "krait/ops/sampler/reference.h"
#include "krait/ops/sampler/sampler.h"
#include "krait/testing/op_test.h"

namespace krait::testing {
namespace {

using ops::sample;
using ops::SamplerOptions;
using ops::SampleRow;
namespace reference = ops::reference;

constexpr DType kF32 = DType::f32;

// `count` draws of one row of logits, positions 0, 1, ...
std::vector<int32_t> draws(TestContext& t, const Values& logits, const SamplerOptions& o,
                           int64_t count, std::span<const int32_t> history = {}) {
  const auto V = static_cast<int64_t>(logits.size());
  const Tensor x = t.from(logits, {1, V}, kF32);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) {
    const SampleRow row{history, 5, static_cast<uint64_t>(i)};
    tokens.push_back(sample(t.c, x, V, o, {&row, 1})[0].token);
  }
  return tokens;
}

// Pearson's statistic stays below its mean by 5 standard deviations (degrees n: mean n, variance 2n).
// Tokens that are expected fewer than 5 times are taken together.
void expect_distribution(const std::vector<int32_t>& tokens, const Values& p,
                         const std::string& what) {
  Values seen(p.size());
  for (int32_t token : tokens) ++seen[static_cast<size_t>(token)];
  const auto total = static_cast<double>(tokens.size());
  double chi = 0, rest_seen = 0, rest_expected = 0;
  int cells = 0;
  const auto add = [&](double s, double e) {
    chi += (s - e) * (s - e) / e;
    ++cells;
  };
  for (size_t i = 0; i < p.size(); ++i) {
    const double e = p[i] * total;
    if (p[i] == 0) {
      EXPECT_EQ(seen[i], 0) << what << ": token " << i << " is outside of the set";
    } else if (e < 5) {
      rest_seen += seen[i], rest_expected += e;
    } else {
      EXPECT_GT(seen[i], 0) << what << ": token " << i << " belongs to the set";
      add(seen[i], e);
    }
  }
  if (rest_expected > 0) add(rest_seen, rest_expected);
  EXPECT_LE(chi, (cells - 1) + 5 * std::sqrt(2.0 * (cells - 1))) << what;
}

TEST(Sampler, DrawsFromTheDistributionOfEachOption) {
  TestContext t;
  const Values logits = random_values(40, 3, 2);
  const std::vector<int32_t> history = {1, 7, 7, 39, 12};
  const std::vector<std::pair<std::string, SamplerOptions>> all = {
      {"plain", {}},
      {"cold", {.temperature = 0.5f}},
      {"hot", {.temperature = 3}},
      {"top-k", {.top_k = 5}},
      {"top-k above V", {.top_k = 100}},
      {"top-p", {.top_p = 0.7f}},
      {"tiny top-p", {.top_p = 1e-6f}},
      {"min-p", {.min_p = 0.1f}},
      {"penalty", {.repetition_penalty = 1.7f}},
      {"penalty below 1", {.repetition_penalty = 0.6f}},
      {"all",
       {.temperature = 1.5f,
        .top_k = 20,
        .top_p = 0.9f,
        .min_p = 0.05f,
        .repetition_penalty = 1.2f}},
  };
  for (auto [name, o] : all) {
    o.seed = 11;
    const Values p = reference::distribution(to_double(t.from(logits, {40}, kF32)), o, history);
    expect_distribution(draws(t, logits, o, 4000, history), p, name);
  }
}

// Large vocabulary: the set that the histogram leaves is that of a full sort.
TEST(Sampler, SetsOfALargeVocabularyAreExact) {
  TestContext t;
  const int64_t V = 5000;
  for (double scale : {0.0, 1e-3, 0.3, 3.0, 40.0}) {
    Values logits = random_values(V, 3, scale);
    for (size_t i = 0; i < logits.size(); i += 3) logits[i] = logits[0];  // ties
    const Tensor x = t.from(logits, {1, V}, kF32);
    for (SamplerOptions o : {SamplerOptions{.top_k = 50},
                             {.top_k = 2000},
                             {.top_p = 0.05f},
                             {.top_p = 0.95f},
                             {.top_k = 300, .top_p = 0.5f},
                             {.top_k = 100, .min_p = 0.5f}}) {
      const Values p = reference::distribution(to_double(x.reshape({V})), o, {});
      // The draw is the inverse of the cumulative distribution in the order of the ids.
      for (uint64_t i = 0; i < 100; ++i) {
        const SampleRow row{{}, 2, i};
        const auto token = static_cast<size_t>(sample(t.c, x, V, o, {&row, 1})[0].token);
        ASSERT_GT(p[token], 0) << scale;
        const double u = Philox{o.seed, 2}.uniform_double(i);
        double below = 0;
        for (size_t j = 0; j < token; ++j) below += p[j];
        EXPECT_GE(u, below - 1e-5);
        EXPECT_LE(u, below + p[token] + 1e-5);
      }
    }
  }
}

TEST(Sampler, GreedyTakesTheLowestIdOfATie) {
  TestContext t;
  EXPECT_EQ(draws(t, {1, 3, -2, 3, 3}, {.temperature = 0, .top_k = 1, .top_p = 0.1f}, 1)[0], 1);
  EXPECT_EQ(draws(t, {1, 3, -2, 3, 3}, {.top_k = 1}, 20), std::vector<int32_t>(20, 1));
  // The penalty comes first: 3 / 2 < 1.6, and -1 * 2 < -1.5.
  const std::vector<int32_t> history = {0, 0};
  EXPECT_EQ(draws(t, {3, 1.6}, {.temperature = 0, .repetition_penalty = 2}, 1, history)[0], 1);
  EXPECT_EQ(draws(t, {-1, -1.5}, {.temperature = 0, .repetition_penalty = 2}, 1, history)[0], 1);
}

TEST(Sampler, T36_PaddingOfTheVocabularyIsNeverChosen) {
  TestContext t;
  const int64_t V = 24, valid = 19;
  Values logits(V, 0.0);
  for (size_t i = valid; i < logits.size(); ++i) logits[i] = i == 20 ? std::nan("") : 50;
  const Tensor x = t.from(logits, {1, V}, kF32);
  for (const SamplerOptions& o :
       {SamplerOptions{}, {.temperature = 0}, {.top_k = 22}, {.top_p = 0.9f}, {.min_p = 0.5f}})
    for (uint64_t i = 0; i < 200; ++i) {
      const std::vector<int32_t> history = {20, 3};
      const SampleRow row{history, 0, i};
      const auto s = sample(t.c, x, valid, o, {&row, 1})[0];
      EXPECT_LT(s.token, valid);
      EXPECT_NEAR(s.logprob, -std::log(static_cast<double>(valid)), 1e-6);
    }
}

TEST(Sampler, LogProbabilityIsBeforePenaltyAndTemperature) {
  TestContext t;
  const Values logits = random_values(300, 3, 2);
  const Tensor x = t.from(logits, {1, 300}, kF32);
  const Values p = reference::distribution(to_double(x.reshape({300})), {}, {});
  const std::vector<int32_t> history = {1, 2, 3};
  for (uint64_t i = 0; i < 20; ++i) {
    const SampleRow row{history, 0, i};
    const auto s =
        sample(t.c, x, 300, {.temperature = 2, .top_k = 40, .repetition_penalty = 3}, {&row, 1})[0];
    EXPECT_NEAR(s.logprob, std::log(p[static_cast<size_t>(s.token)]), 2e-6);
  }
}

TEST(Sampler, ARowDependsOnItselfAlone) {
  TestContext t;
  // rows enough for a GPU to give each fewer blocks than it gives one
  const int64_t B = 40, V = 5000;
  const Tensor x = t.random({B, V}, kF32, 1, {.scale = 2, .strided = true});
  std::vector<SampleRow> rows;
  const std::vector<int32_t> history = {4, 900};
  for (int64_t b = 0; b < B; ++b) rows.push_back({history, static_cast<uint64_t>(b) + 7, 3});
  for (const SamplerOptions& o :
       {SamplerOptions{.temperature = 0},
        {.seed = 2},
        {.top_k = 100, .top_p = 0.9f, .repetition_penalty = 1.3f, .seed = 2},
        {.top_k = 300, .top_p = 0.9f, .seed = 2},
        {.top_p = 0.3f, .min_p = 0.05f, .seed = 2}}) {
    std::vector<int32_t> different;
    for (int threads : {1, 2, 4}) {
      const ThreadCount count(threads);
      const auto all = sample(t.c, x, V, o, rows);
      for (int64_t b = 0; b < B; ++b) {
        const auto i = static_cast<size_t>(b);
        const auto one = sample(t.c, x.slice(0, b, b + 1), V, o, {&rows[i], 1})[0];
        EXPECT_EQ(all[i].token, one.token);
        EXPECT_EQ(all[i].logprob, one.logprob);
        if (threads == 1) different.push_back(one.token);
      }
    }
    std::sort(different.begin(), different.end());
    EXPECT_GT(std::unique(different.begin(), different.end()) - different.begin(), 3);
  }
}

// What the device goes on from is what the host reads later, and what sample() gives.
TEST(Sampler, QueuedDrawsAreThoseOfSample) {
  TestContext t;
  const int64_t most = 5, V = 5000;
  const Tensor x = t.random({most, V}, kF32, 1, {.scale = 2});
  const std::vector<int32_t> history = {4, 900, 4999};
  ops::Sampler sampler(t.c.device, most);
  for (const SamplerOptions& o : {SamplerOptions{.temperature = 0},
                                  {.top_k = 100, .top_p = 0.9f, .repetition_penalty = 1.3f}})
    for (const int64_t B : {most, int64_t{2}}) {
      std::vector<SampleRow> rows;
      for (int64_t b = 0; b < B; ++b) rows.push_back({history, static_cast<uint64_t>(b), 3});
      const Tensor logits = x.slice(0, 0, B);
      sampler.draw(t.c, logits, V - 3, o, rows);
      ASSERT_EQ(sampler.tokens().shape, Shape({B}));
      std::vector<int32_t> tokens(rows.size());
      download(sampler.tokens(), tokens.data(), t.c.stream);
      const std::span<const ops::Sampled> got = sampler.read();
      ASSERT_EQ(got.size(), rows.size());
      const std::vector<ops::Sampled> expected = sample(t.c, logits, V - 3, o, rows);
      for (size_t b = 0; b < rows.size(); ++b) {
        EXPECT_EQ(tokens[b], expected[b].token);
        EXPECT_EQ(got[b].token, expected[b].token);
        EXPECT_EQ(got[b].logprob, expected[b].logprob);
      }
    }
  const std::vector<SampleRow> three(3), six(6);
  Values bad(3 * 33, 0.0);
  bad[40] = std::nan("");
  EXPECT_THROW(
      {
        sampler.draw(t.c, t.from(bad, {3, 33}, kF32), 33, {}, three);
        sampler.read();
      },
      Error);
  EXPECT_THROW(sampler.draw(t.c, t.random({6, 33}, kF32, 1), 33, {}, six), Error);
}

TEST(Sampler, MaskedTokensAreNeverChosen) {
  TestContext t;
  const double inf = std::numeric_limits<double>::infinity();
  for (const SamplerOptions& o :
       {SamplerOptions{.temperature = 100}, {.top_k = 3}, {.top_p = 0.99f}, {.temperature = 0}})
    for (int32_t token : draws(t, {-inf, 1, -inf, 2}, o, 50)) EXPECT_EQ(token % 2, 1);
}

TEST(Sampler, NamesTheRowThatIsNotANumber) {
  TestContext t;
  const double inf = std::numeric_limits<double>::infinity();
  const std::vector<SampleRow> rows(3);
  const std::vector<std::pair<double, std::string>> bad = {
      {std::nan(""), "NaN"}, {inf, "+inf"}, {-inf, "nothing but -inf"}};
  for (const auto& [value, name] : bad) {
    Values logits(3 * 33, 0.0);
    std::fill_n(logits.begin() + 33, 33, value);
    const Tensor x = t.from(logits, {3, 33}, kF32);
    EXPECT_EQ(error_of([&] { sample(t.c, x, 33, {}, rows); }),
              "[sampler] logits: row 1 holds " + std::string(name));
  }
  const Tensor x = t.random({3, 33}, kF32, 1);
  for (const SamplerOptions& o : {SamplerOptions{.temperature = -1},
                                  {.top_k = -1},
                                  {.top_p = 0},
                                  {.top_p = 1.5f},
                                  {.min_p = -0.1f},
                                  {.repetition_penalty = 0}})
    EXPECT_THROW(sample(t.c, x, 33, o, rows), Error);
  EXPECT_THROW(sample(t.c, x, 34, {}, rows), Error);
}

}  // namespace
}  // namespace krait::testing
