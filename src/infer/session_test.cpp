// Every path gives the same numbers: whole = chunked = stepped = packed = batched = resumed = forked, to
// kTolerance of the logits' standard deviation (docs/numerics.md).
#include "krait/infer/session.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "krait/infer/document_reader.h"
#include "krait/infer/state_file.h"
#include "krait/models/mamba2.h"
#include "krait/ops/sampler/sampler.h"
#include "krait/testing/files.h"
#include "krait/testing/small_model.h"

namespace krait {
namespace {

// float32; two orders of summation differ by a few roundings a layer.
constexpr double kTolerance = 1e-5;

using Logits = std::vector<float>;
using testing::Ids;
using testing::kSmallVocab;
using testing::random_ids;
using testing::read;
using testing::session_of;
using testing::small_model;

Logits row_of(const Session& s, int64_t row) {
  return testing::to_float(s.logits().slice(0, row, row + 1));
}

Logits whole(const models::LanguageModel& model, const Ids& ids) {
  Session s = session_of(model, 1, static_cast<int64_t>(ids.size()));
  read(s, {ids});
  return row_of(s, 0);
}

double deviation(const Logits& a) {
  const double mean = std::accumulate(a.begin(), a.end(), 0.0) / static_cast<double>(a.size());
  double sum = 0;
  for (const float x : a) sum += (x - mean) * (x - mean);
  return std::sqrt(sum / static_cast<double>(a.size()));
}

void expect_same(const Logits& got, const Logits& expected, const std::string& what) {
  ASSERT_EQ(got.size(), expected.size());
  const double scale = deviation(expected);
  ASSERT_GT(scale, 0.1) << "logits that hardly vary prove nothing";
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(std::isfinite(got[i])) << what << " " << i;
    worst =
        std::max(worst, std::abs(static_cast<double>(got[i]) - static_cast<double>(expected[i])));
  }
  EXPECT_LE(worst, kTolerance * scale) << what;
}

void expect_same_state(const Snapshot& a, const Snapshot& b, const std::string& what) {
  EXPECT_EQ(a.tokens, b.tokens);
  for (size_t p = 0; p < a.state.parts().size(); ++p) {
    double worst = 0, largest = 0;
    const testing::Values x = testing::to_double(a.state.tensor(p)),
                          y = testing::to_double(b.state.tensor(p));
    ASSERT_EQ(x.size(), y.size());
    for (size_t i = 0; i < x.size(); ++i) {
      worst = std::max(worst, std::abs(x[i] - y[i]));
      largest = std::max(largest, std::abs(y[i]));
    }
    EXPECT_LE(worst, 2 * kTolerance * largest) << what << " " << a.state.parts()[p].name;
  }
}

TEST(Session, T19_StepsGiveWhatOneCallGives) {
  const auto model = small_model();
  for (const size_t L : {1, 2, 3, 4, 5, 31, 97, 257}) {
    const Ids ids = random_ids(L, L);
    Session s = session_of(*model, 1, 512), all = session_of(*model, 1, 512);
    for (const int32_t id : ids) s.step({&id, 1});
    read(all, {ids});
    expect_same(row_of(s, 0), row_of(all, 0), fmt::format("L = {}", L));
    expect_same_state(s.snapshot(0), all.snapshot(0), fmt::format("L = {}", L));
  }
}

TEST(Session, StepsOfTokensDrawnOnTheDeviceAreThoseOfTheHosts) {
  const auto model = small_model();
  const std::vector<Ids> prompts = {random_ids(7, 1), random_ids(12, 2)};
  Session drawn = session_of(*model, 2), told = session_of(*model, 2);
  read(drawn, prompts);
  read(told, prompts);
  ops::Sampler sampler(drawn.context().device, 2);
  for (uint64_t t = 0; t < 6; ++t) {
    const std::vector<ops::SampleRow> rows = {{{}, 0, t}, {{}, 1, t}};
    sampler.draw(drawn.context(), drawn.logits(), testing::kSmallVocab, {.seed = 5}, rows);
    drawn.step(sampler.tokens());
    Ids next;
    for (const ops::Sampled& s : sampler.read()) next.push_back(s.token);
    told.step(next);
    for (int64_t row = 0; row < 2; ++row) EXPECT_EQ(row_of(drawn, row), row_of(told, row)) << t;
  }
  EXPECT_EQ(drawn.tokens_read(1), 18);
  sampler.draw(drawn.context(), drawn.logits().slice(0, 0, 1), testing::kSmallVocab, {},
               std::vector<ops::SampleRow>(1));
  EXPECT_THROW(drawn.step(sampler.tokens()), Error);
}

// A GPU draws behind a step, and both are recorded; on the CPU there is nothing to go on with.
TEST(Session, DrawsBehindStepsAreThoseBetweenThem) {
  const auto model = small_model();
  const std::vector<Ids> prompts = {random_ids(7, 1), random_ids(12, 2)};
  Session ahead = session_of(*model, 2), apart = session_of(*model, 2);
  ops::Sampler of_ahead(ahead.context().device, 2), of_apart(ahead.context().device, 2);
  const auto rows_at = [](uint64_t t) {
    return std::vector<ops::SampleRow>{{{}, 0, t}, {{}, 1, t + 5}};
  };
  const auto draw = [&](ops::Sampler& sampler, Session& s, const ops::SamplerOptions& o,
                        uint64_t t) {
    sampler.draw(s.context(), s.logits(), testing::kSmallVocab, o, rows_at(t));
  };
  const auto read_tokens = [](ops::Sampler& sampler) {
    Ids ids;
    for (const ops::Sampled& s : sampler.read()) ids.push_back(s.token);
    return ids;
  };
  read(ahead, prompts);
  read(apart, prompts);
  for (const ops::SamplerOptions& o : {ops::SamplerOptions{.seed = 5},
                                       {.temperature = 0},
                                       {.top_k = 9, .top_p = 0.9f, .seed = 6}}) {
    draw(of_ahead, ahead, o, 0);
    EXPECT_EQ(of_ahead.goes_on(), ahead.context().device.type == Device::cuda);
    if (!of_ahead.goes_on()) return;
    for (uint64_t t = 0; t < 6; ++t) {
      ahead.step_and_draw(of_ahead);
      draw(of_apart, apart, o, t);
      apart.step(of_apart.tokens());
      EXPECT_EQ(read_tokens(of_ahead), read_tokens(of_apart)) << t;
    }
    for (int64_t row = 0; row < 2; ++row) EXPECT_EQ(row_of(ahead, row), row_of(apart, row));
  }
  draw(of_ahead, ahead, {.repetition_penalty = 1.5f}, 0);
  EXPECT_FALSE(of_ahead.goes_on());
}

TEST(Session, T20_ChunksOfAnySizeGiveWhatOneCallGives) {
  const auto model = small_model();
  const Ids ids = random_ids(131, 3);
  const Logits expected = whole(*model, ids);
  for (const int64_t chunk : {1, 2, 3, 5, 64, 130}) {
    Session s = session_of(*model, 1, chunk);
    read(s, {ids});
    expect_same(row_of(s, 0), expected, fmt::format("chunks of {}", chunk));
  }
  Session split = session_of(*model, 1);
  read(split, {Ids(ids.begin(), ids.begin() + 40)});
  read(split, {Ids(ids.begin() + 40, ids.begin() + 42)});  // T20: two tokens onto a state
  read(split, {Ids(ids.begin() + 42, ids.end())});
  expect_same(row_of(split, 0), expected, "three calls");
}

TEST(Session, T23_T24_RaggedRowsAreAsIfAlone) {
  const auto model = small_model();
  const std::vector<Ids> rows = {random_ids(1, 1), random_ids(97, 2), random_ids(2, 3),
                                 random_ids(64, 4)};
  for (const int64_t chunk : {7, 512}) {
    Session s = session_of(*model, 4, chunk);
    read(s, rows);
    for (size_t b = 0; b < rows.size(); ++b) {
      expect_same(row_of(s, static_cast<int64_t>(b)), whole(*model, rows[b]),
                  fmt::format("row {}", b));
      EXPECT_EQ(s.tokens_read(static_cast<int64_t>(b)), static_cast<int64_t>(rows[b].size()));
    }
    // A second ragged turn, in which one row reads nothing and keeps its logits.
    const Logits before = row_of(s, 2);
    const std::vector<Ids> more = {random_ids(5, 9), random_ids(1, 8), {}, random_ids(3, 7)};
    read(s, more);
    EXPECT_EQ(row_of(s, 2), before);
    for (size_t b = 0; b < rows.size(); ++b) {
      Ids longer = rows[b];
      longer.insert(longer.end(), more[b].begin(), more[b].end());
      expect_same(row_of(s, static_cast<int64_t>(b)), whole(*model, longer),
                  fmt::format("row {} after its second turn", b));
    }
  }
}

TEST(Session, T31_SnapshotsRewindAndFork) {
  const auto model = small_model();
  const Ids prompt = random_ids(50, 5), left = random_ids(9, 6), right = random_ids(4, 7);
  Session s = session_of(*model, 2);
  read(s, {prompt, {}});
  const Snapshot at50 = s.snapshot(0);
  s.restore(1, at50);  // a fork does not share
  read(s, {left, right});
  const auto joined = [&](const Ids& tail) {
    Ids ids = prompt;
    ids.insert(ids.end(), tail.begin(), tail.end());
    return whole(*model, ids);
  };
  expect_same(row_of(s, 0), joined(left), "left");
  expect_same(row_of(s, 1), joined(right), "right");
  s.restore(0, at50);
  EXPECT_EQ(row_of(s, 0), at50.logits);
  read(s, {right, {}});
  expect_same(row_of(s, 0), joined(right), "rewound");
}

TEST(Session, T26_RowsThatComeBackAreClean) {
  const auto model = small_model();
  Session s = session_of(*model, 3);
  const std::vector<Ids> rows = {random_ids(20, 1), random_ids(30, 2), random_ids(10, 3)};
  read(s, rows);
  const std::vector<int64_t> keep = {0, 2};
  s.keep_rows(keep);
  EXPECT_EQ(s.batch(), 2);
  EXPECT_EQ(s.tokens_read(1), 10) << "the row that moved";
  const Ids next = {3, 4};
  s.step(next);
  Ids third = rows[2];
  third.push_back(4);
  expect_same(row_of(s, 1), whole(*model, third), "the row that moved");
  s.restart(3);
  EXPECT_TRUE(std::isnan(row_of(s, 2)[0]));
  read(s, {rows[1], rows[1], rows[1]});
  for (int64_t b = 0; b < 3; ++b)
    expect_same(row_of(s, b), whole(*model, rows[1]), "a row that came back");
}

TEST(Session, StateFilesGoOnWithoutThePrompt) {
  const auto model = small_model();
  const testing::TempDir dir;
  Session s = session_of(*model, 2);
  read(s, {random_ids(40, 1), random_ids(2, 2)});
  const std::vector<Snapshot> saved = [&] {
    std::vector<Snapshot> v;
    v.push_back(s.snapshot(0));
    v.push_back(s.snapshot(1));
    return v;
  }();
  save_state(dir / "s.safetensors", saved, "model-a");
  const std::vector<Snapshot> loaded = load_state(dir / "s.safetensors", *model, "model-a");
  ASSERT_EQ(loaded.size(), 2u);
  Session t = session_of(*model, 2);
  for (int64_t b = 0; b < 2; ++b) {
    t.restore(b, loaded[static_cast<size_t>(b)]);
    EXPECT_EQ(t.tokens_read(b), s.tokens_read(b));
    EXPECT_EQ(row_of(t, b), row_of(s, b));
  }
  const Ids next = {5, 6};
  s.step(next);
  t.step(next);
  EXPECT_EQ(row_of(t, 0), row_of(s, 0));  // bit for bit
  EXPECT_EQ(row_of(t, 1), row_of(s, 1));

  const std::string refused =
      testing::error_of([&] { load_state(dir / "s.safetensors", *model, "model-b"); });
  EXPECT_NE(refused.find("model-a"), std::string::npos) << refused;
  EXPECT_NE(refused.find("model-b"), std::string::npos) << refused;
}

TEST(Session, RefusesTokensOutsideTheVocabularyBeforeAnythingRuns) {
  const auto model = small_model();
  Session s = session_of(*model, 1);
  read(s, {random_ids(4, 1)});
  const Logits before = row_of(s, 0);
  for (const int32_t bad : {-1, 250, 255, 1 << 30}) {
    const std::string message = testing::error_of([&] { read(s, {Ids{1, bad}}); });
    EXPECT_NE(message.find(std::to_string(bad)), std::string::npos) << message;
  }
  EXPECT_EQ(row_of(s, 0), before);
  EXPECT_EQ(s.tokens_read(0), 4);
}

TEST(Session, RefusesABatchThatDoesNotFitWithThePlansNumbers) {
  const auto model = small_model();
  const std::string message = testing::error_of([&] { session_of(*model, int64_t{1} << 28); });
  EXPECT_NE(message.find("states"), std::string::npos) << message;
  EXPECT_NE(message.find("memory are free"), std::string::npos) << message;
}

TEST(Session, T41_PrefillNeverHoldsLogitsOfEveryToken) {
  models::LanguageModel model(models::mamba_config(16, 1, 100'000, 1));
  model.params().allocate(nn::Purpose::inference, DType::f32, /*planning=*/true);
  SessionOptions o;
  o.chunk = 512;
  const size_t all = 512 * 100'000 * sizeof(float);
  EXPECT_LT(plan_session(model, o).working, all / 50);
  o.chunk = 1024;  // memory grows with the pass, not with the prompt
  EXPECT_LT(plan_session(model, o).working, all / 50);
}

// How much scratch a pass takes need not be largest at either end: on a GPU ssd walks a few long sequences in pieces,
// of which there are most where none is much longer than the others.
TEST(Runner, APassThatNeedsMoreThanTheLargestOnesGetsIt) {
  const auto model = small_model();
  constexpr int64_t kTokens = 64, kSequences = 16;
  int64_t n = 0;  // sequences of the pass
  const auto in_the_middle = [&](Context& c, const Tensor&) {
    c.alloc({c.planning() && n == 0 ? 0 : n * (kSequences - n) * 4096}, DType::f32);
  };
  Runner runner(*model, {DType::f32, kTokens, kSequences}, in_the_middle);
  nn::State in = model->make_state(kSequences), out = model->make_state(kSequences);
  const Philox rng{5, 1};
  for (uint64_t i = 0; i < 30; ++i) {
    const auto words = rng.words(i);
    n = 1 + words[0] % kSequences;
    std::vector<Sequence> sequences;
    int64_t tokens = 0;
    for (int32_t s = 0; s < n; ++s) {
      sequences.push_back(
          {1 + rng.words(1000 * (i + 1) + static_cast<uint64_t>(s))[0] % (kTokens / n), s, s});
      tokens += sequences.back().tokens;
    }
    runner.packed(random_ids(static_cast<size_t>(tokens), i), sequences, in, out);
  }
}

TEST(Session, PromptsOfAnyLengthsGetTheMemoryThatTheyNeed) {
  models::LanguageModel model(models::mamba2_config(64, 1, kSmallVocab, 8));
  model.params().allocate(nn::Purpose::inference, DType::f32, false, testing::test_device());
  model.params().initialize(7);
  for (const std::vector<size_t>& lengths :
       {std::vector<size_t>{1638, 1638, 1638, 1638, 1640}, {600, 600, 600}, {1100, 900, 3, 700}}) {
    Session s = session_of(model, static_cast<int64_t>(lengths.size()), 8192);
    std::vector<Ids> prompts;
    for (const size_t l : lengths) prompts.push_back(random_ids(l, prompts.size()));
    read(s, prompts);
    EXPECT_EQ(s.tokens_read(0), static_cast<int64_t>(lengths[0]));
  }
}

TEST(DocumentReader, T25_PackedDocumentsAreAsIfAlone) {
  const auto model = small_model();
  const std::vector<Ids> documents = {random_ids(3, 1), random_ids(40, 2),  random_ids(1, 3),
                                      random_ids(8, 4), random_ids(100, 5), random_ids(2, 6)};
  std::vector<Logits> expected;
  for (const Ids& d : documents) {
    Session alone = session_of(*model, 1);
    for (const int32_t id : d) {
      alone.step({&id, 1});
      expected.push_back(row_of(alone, 0));
    }
  }
  for (const int64_t chunk :
       {5, 19, 32, 512}) {  // 19: a pass ends with the document of 100, after 152 tokens
    std::vector<Logits> got;
    Ids targets;
    DocumentReader reader(
        *model, DType::f32,
        [&](Context& c, const Tensor& hidden, const DocumentPass& pass) {
          each_logits(c, *model, hidden, [&](int64_t, const Tensor& logits) {
            for (int64_t i = 0; !c.planning() && i < logits.size(0); ++i) {
              const float* p = logits.as<float>() + i * logits.size(1);
              got.emplace_back(p, p + logits.size(1));
            }
          });
          targets.insert(targets.end(), pass.targets.begin(), pass.targets.end());
        },
        chunk);
    for (const Ids& d : documents) {
      reader.begin();
      reader.add(d);
      reader.end();
    }
    reader.finish();
    size_t t = 0;
    for (const Ids& d : documents)
      for (size_t i = 0; i < d.size(); ++i, ++t) {
        ASSERT_LT(t, got.size());
        expect_same(got[t], expected[t], fmt::format("chunk {}, token {}", chunk, t));
        EXPECT_EQ(targets[t], i + 1 < d.size() ? d[i + 1] : -1) << t;
      }
    EXPECT_EQ(t, got.size());
  }
}

}  // namespace
}  // namespace krait
