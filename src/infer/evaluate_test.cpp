#include "krait/infer/evaluate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "krait/base/file.h"
#include "krait/io/any_model.h"
#include "krait/testing/files.h"
#include "krait/testing/small_model.h"

namespace krait {
namespace {

using testing::Ids;
using testing::random_ids;

// -log p(target) and whether it is the best, from the logits that a session gives after `before`.
struct Prediction {
  double nll;
  bool best;
};
Prediction predict(const models::LanguageModel& model, const Ids& before, int32_t target) {
  Session s = testing::session_of(model, 1);
  testing::read(s, {before});
  const std::vector<float> logits = testing::to_float(s.logits());
  const float* row = logits.data();
  double sum = 0;
  for (int64_t v = 0; v < s.logits().size(1); ++v) sum += std::exp(static_cast<double>(row[v]));
  return {std::log(sum) - row[target],
          std::max_element(row, row + testing::kSmallVocab) - row == target};
}

TEST(Likelihood, IsTheSumOverEveryTokenButTheFirst) {
  const auto model = testing::small_model();
  const std::vector<Ids> documents = {random_ids(9, 1), random_ids(1, 2), {}, random_ids(700, 3)};
  std::vector<float> each;
  Likelihood likelihood(*model, DType::f32, [&](std::span<const float> nll) {
    each.insert(each.end(), nll.begin(), nll.end());
  });
  for (const Ids& d : documents) {
    likelihood.begin();
    for (size_t i = 0; i < d.size(); i += 37)
      likelihood.add(std::span(d).subspan(i, std::min<size_t>(37, d.size() - i)));
    likelihood.end();
  }
  likelihood.finish();
  EXPECT_EQ(likelihood.tokens(), 710);
  EXPECT_EQ(likelihood.predicted(), 8 + 699);
  ASSERT_EQ(each.size(), 8u + 699u);
  double sum = 0;
  for (const float x : each) sum += x;
  EXPECT_NEAR(likelihood.total(), sum, 1e-6 * sum);

  // The last token of a document that spans two passes; logits of the padding count, as in training.
  const Ids& last = documents[3];
  const Prediction p = predict(*model, Ids(last.begin(), last.end() - 1), last.back());
  EXPECT_NEAR(each.back(), p.nll, 1e-4);
  const Prediction q =
      predict(*model, Ids(documents[0].begin(), documents[0].begin() + 3), documents[0][3]);
  EXPECT_NEAR(each[2], q.nll, 1e-4);
}

// The loss takes the rows of a pass in blocks of about one size: a shorter pass may have the larger block.
TEST(Likelihood, TakesDocumentsOfAnyLengthWhereTheVocabularyIsLarge) {
  models::LanguageModel model(models::mamba_config(16, 1, 50280, 8));
  model.params().allocate(nn::Purpose::inference, DType::f32, false, testing::test_device());
  model.params().initialize(7);
  for (const size_t n : {100, 134, 160, 161, 512 + 150}) {
    Likelihood likelihood(model, DType::f32);
    likelihood.begin();
    likelihood.add(random_ids(n, 1));
    likelihood.end();
    likelihood.finish();
    EXPECT_EQ(likelihood.predicted(), static_cast<int64_t>(n) - 1);
    EXPECT_NEAR(likelihood.total() / static_cast<double>(n - 1), std::log(50280.0), 1);
  }
}

// Many documents in a pass are what each is alone, in the memory that was planned: scratch of Mamba-3 and, on matrix units,
// of Mamba-2 on a GPU grows with sequences and with their length.
TEST(Likelihood, OfManyDocumentsIsTheSumOfEach) {
  const testing::TempDir dir;
  const std::filesystem::path matrix_units = dir.path() / "config.json",
                              family = KRAIT_SOURCE_DIR "/tests/family";
  write_file(matrix_units, R"({"d_model": 64, "n_layer": 1, "vocab_size": 256,
      "ssm_cfg": {"layer": "Mamba2", "d_state": 128, "headdim": 64}})");
  for (const auto& [config, dtype] :
       {std::pair{family / "mamba3.json", DType::f32},
        std::pair{family / "mamba3_mimo.json", DType::f32}, std::pair{matrix_units, DType::bf16}}) {
    SCOPED_TRACE(config.string());
    const DType activation = dtype;
    models::LanguageModel model(std::get<models::Config>(read_any_config(config.string())));
    model.params().allocate(nn::Purpose::inference, activation, false, testing::test_device());
    model.params().initialize(7);
    const auto total_of = [&](std::span<const Ids> documents) {
      Likelihood likelihood(model, activation);
      for (const Ids& d : documents) {
        likelihood.begin();
        likelihood.add(d);
        likelihood.end();
      }
      likelihood.finish();
      return likelihood.total();
    };
    std::vector<Ids> documents;
    for (const size_t n : {65, 3, 70, 1, 100, 66, 80, 64, 129, 90})
      documents.push_back(random_ids(n, n));
    for (uint64_t i = 0; i < 60; ++i) documents.push_back(random_ids(9, 200 + i));
    double sum = 0;
    for (const Ids& d : documents) sum += total_of({&d, 1});
    EXPECT_NEAR(total_of(documents) / sum, 1, activation == DType::bf16 ? 1e-3 : 1e-5);
  }
}

TEST(Likelihood, GoesOnFromZeroWherePositionsRunOut) {
  constexpr int64_t kPositions = 7;
  const auto model = testing::small_model(kPositions);
  const std::vector<Ids> documents = {random_ids(7, 1), random_ids(8, 2), random_ids(3, 3),
                                      random_ids(600, 4)};
  std::vector<float> each;
  Likelihood likelihood(*model, DType::f32, [&](std::span<const float> nll) {
    each.insert(each.end(), nll.begin(), nll.end());
  });
  const auto read = [&](const Ids& d) {
    likelihood.begin();
    for (size_t i = 0; i < d.size(); i += 10)
      likelihood.add(std::span(d).subspan(i, std::min<size_t>(10, d.size() - i)));
    likelihood.end();
  };
  read(documents[0]);
  EXPECT_FALSE(likelihood.cut());
  for (size_t i = 1; i < documents.size(); ++i) read(documents[i]);
  likelihood.finish();
  EXPECT_TRUE(likelihood.cut());
  EXPECT_EQ(likelihood.tokens(), 618);
  ASSERT_EQ(each.size(), 6u + 7u + 2u + 599u);

  const auto expect = [&](size_t place, const Ids& d, int64_t t) {  // d[t] is predicted
    const int64_t from = (t - 1) / kPositions * kPositions;
    const Prediction p =
        predict(*model, Ids(d.begin() + from, d.begin() + t), d[static_cast<size_t>(t)]);
    EXPECT_NEAR(each[place], p.nll, 1e-4) << t;
  };
  for (int64_t t = 1; t < 8; ++t) expect(static_cast<size_t>(6 + t - 1), documents[1], t);
  for (const int64_t t : {1, 7, 8, 14, 500, 511, 512, 599})
    expect(static_cast<size_t>(15 + t - 1), documents[3], t);
}

TEST(LastWord, CountsPassagesWhoseTargetTokensAreAllTheBest) {
  const auto model = testing::small_model();
  LastWord task(*model, DType::f32);
  double total = 0;
  int64_t right = 0;
  for (uint64_t i = 0; i < 6; ++i) {
    Ids context = random_ids(40 + 60 * i, i), target;
    // Half of the targets are what the model itself says; of those, some go wrong at the second token.
    Ids text = context;
    bool all = true;
    for (int k = 0; k < 2; ++k) {
      Session s = testing::session_of(*model, 1);
      testing::read(s, {text});
      const std::vector<float> logits = testing::to_float(s.logits());
      const float* row = logits.data();
      auto token = static_cast<int32_t>(std::max_element(row, row + testing::kSmallVocab) - row);
      if (i % 2 == 1 && k == static_cast<int>(i / 2 % 2))
        token = (token + 1) % testing::kSmallVocab;
      const Prediction p = predict(*model, text, token);
      total += p.nll;
      all = all && p.best;
      target.push_back(token);
      text.push_back(token);
    }
    right += all;
    task.add(context, target);
  }
  task.finish();
  EXPECT_EQ(task.passages(), 6);
  EXPECT_EQ(right, 3);
  EXPECT_EQ(task.right(), right);
  EXPECT_NEAR(task.total(), total, 1e-4 * total);
}

}  // namespace
}  // namespace krait
