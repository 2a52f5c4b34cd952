#include "krait/infer/generate.h"

#include <gtest/gtest.h>

#include "krait/testing/small_model.h"

namespace krait {
namespace {

using testing::Ids;
using testing::random_ids;

GenerateOptions drawing(int64_t n) {
  GenerateOptions o;
  o.max_new = n;
  o.sampler.temperature = 0.8f;
  o.sampler.top_p = 0.95f;
  o.sampler.seed = 3;
  return o;
}

// The tokens after each prompt, which are read as one batch.
std::vector<Generated> continued(const models::LanguageModel& model,
                                 const std::vector<Ids>& prompts, const GenerateOptions& o) {
  Session s = testing::session_of(model, static_cast<int64_t>(prompts.size()));
  testing::read(s, prompts);
  std::vector<Start> starts;
  for (const Ids& p : prompts) starts.push_back({p, 0});
  return generate(s, starts, o);
}

TEST(Generate, ARowOfABatchIsWhatItsPromptGivesAlone) {
  const auto model = testing::small_model();
  const std::vector<Ids> prompts = {random_ids(5, 1), random_ids(40, 2), random_ids(1, 3)};
  const std::vector<Generated> batch = continued(*model, prompts, drawing(20));
  for (size_t b = 0; b < prompts.size(); ++b) {
    EXPECT_EQ(batch[b].tokens, continued(*model, {prompts[b]}, drawing(20))[0].tokens) << b;
    EXPECT_EQ(batch[b].finish, Finish::length);
  }
  EXPECT_NE(batch[0].tokens, batch[1].tokens);
}

TEST(Generate, RowsThatEndEarlyDoNotDisturbTheOthers) {
  const auto model = testing::small_model();
  const std::vector<Ids> prompts = {random_ids(5, 1), random_ids(9, 2), random_ids(7, 4)};
  const std::vector<Generated> free = continued(*model, prompts, drawing(20));
  GenerateOptions o = drawing(20);
  // A token that ends the row in the middle long before the last one, which then moves.
  const auto first = [&](size_t b, int32_t id) {
    return std::find(free[b].tokens.begin(), free[b].tokens.end(), id) - free[b].tokens.begin();
  };
  for (const int32_t id : free[1].tokens)
    if (o.eos.empty() && first(1, id) + 5 < first(2, id)) o.eos = {id};
  ASSERT_FALSE(o.eos.empty());
  const std::vector<Generated> ended = continued(*model, prompts, o);
  for (size_t b = 0; b < prompts.size(); ++b) {
    const auto at = std::find(free[b].tokens.begin(), free[b].tokens.end(), o.eos[0]);
    const bool ends = at != free[b].tokens.end();
    EXPECT_EQ(ended[b].tokens, Ids(free[b].tokens.begin(), at + (ends ? 1 : 0))) << b;
    EXPECT_EQ(ended[b].finish, ends ? Finish::eos : Finish::length) << b;
  }
}

TEST(Generate, T30_CopiesOfAPromptAreContinuedInWaysOfTheirOwn) {
  const auto model = testing::small_model();
  const Ids prompt = random_ids(5, 1);
  Session s = testing::session_of(*model, 3);
  testing::read(s, {prompt, prompt, prompt});
  const std::vector<Generated> copies =
      generate(s, {{prompt, 0}, {prompt, 1}, {prompt, 1}}, drawing(20));
  EXPECT_EQ(copies[0].tokens, continued(*model, {prompt}, drawing(20))[0].tokens);
  EXPECT_NE(copies[1].tokens, copies[0].tokens);
  EXPECT_EQ(copies[2].tokens, copies[1].tokens) << "the same stream";
}

TEST(Generate, ASavedSequenceGoesOnWithTheSameTokens) {
  const auto model = testing::small_model();
  const Ids prompt = random_ids(11, 1);
  const Ids whole = continued(*model, {prompt}, drawing(16))[0].tokens;
  for (const int64_t first : {0, 1, 7}) {
    Session s = testing::session_of(*model, 1);
    testing::read(s, {prompt});
    GenerateOptions o = drawing(first);
    Snapshot saved;
    o.read_last = true;
    o.finished = [&](size_t, Snapshot snapshot) { saved = std::move(snapshot); };
    Ids tokens = generate(s, {{prompt, 0}}, o)[0].tokens;
    EXPECT_EQ(saved.tokens, 11 + first);
    Session t = testing::session_of(*model, 1);
    t.restore(0, saved);
    const Ids rest = generate(t, {{{}, 0}}, drawing(16 - first))[0].tokens;
    tokens.insert(tokens.end(), rest.begin(), rest.end());
    EXPECT_EQ(tokens, whole) << "saved after " << first;
  }
}

TEST(Generate, T36_PaddingOfTheVocabularyIsNeverDrawn) {
  const auto model = testing::small_model();
  // Rows 250 to 255 of the tied embedding give the largest logits there are, of either sign.
  const Tensor& rows = model->params().find("backbone.embeddings.weight")->value;
  const auto D = static_cast<size_t>(rows.size(1)), V = static_cast<size_t>(rows.size(0));
  testing::Values w = testing::to_double(rows);
  for (size_t v = testing::kSmallVocab; v < V; ++v)
    for (size_t i = 0; i < D; ++i) w[v * D + i] = (v % 2 ? 100 : -100) * w[(v - 200) * D + i];
  testing::set_values(rows, w);
  for (const float temperature : {0.0f, 1.0f}) {
    GenerateOptions o = drawing(40);
    o.sampler.temperature = temperature;
    const Ids tokens = continued(*model, {random_ids(6, 5)}, o)[0].tokens;
    EXPECT_EQ(tokens.size(), 40u);
    for (const int32_t token : tokens) EXPECT_LT(token, testing::kSmallVocab);
  }
}

TEST(Generate, TextBehindAStateKeepsItsFirstSpace) {
  std::string vocab = R"("▁": 0, "a": 1)";
  for (int32_t id = 2; id < testing::kSmallVocab; ++id)
    vocab += fmt::format(R"(, "▁w{}": {})", id, id);
  const auto words =
      parse_tokenizer(fmt::format(R"({{"model": {{"type": "BPE", "vocab": {{{}}}, "merges": []}},
                      "pre_tokenizer": {{"type": "Metaspace", "replacement": "▁", "add_prefix_space": true}},
                      "decoder": {{"type": "Metaspace", "replacement": "▁", "add_prefix_space": true}}}})",
                                  vocab),
                      "words");
  const auto model = testing::small_model();
  GenerateOptions o = drawing(8);
  o.tokenizer = words.get();
  const std::string whole = continued(*model, {random_ids(5, 1)}, o)[0].text;
  Snapshot saved;
  o.max_new = 3;
  o.read_last = true;
  o.finished = [&](size_t, Snapshot s) { saved = std::move(s); };
  const std::string first = continued(*model, {random_ids(5, 1)}, o)[0].text;
  Session later = testing::session_of(*model, 1);
  later.restore(0, saved);
  o.max_new = 5;
  EXPECT_EQ(first + generate(later, {{{}, 0}}, o)[0].text, whole);
}

TEST(Generate, StopsAtATextThatIsNotShown) {
  const auto model = testing::small_model();
  const auto bytes = byte_tokenizer();
  GenerateOptions o = drawing(60);
  o.tokenizer = bytes.get();
  const Generated free = continued(*model, {random_ids(6, 5)}, o)[0];
  ASSERT_GT(free.text.size(), 30u);
  o.stop = {"\x01\x02\x03", free.text.substr(20, 3)};
  std::string streamed;
  o.text = [&](size_t, std::string_view piece) { streamed += piece; };
  const Generated cut = continued(*model, {random_ids(6, 5)}, o)[0];
  EXPECT_EQ(cut.finish, Finish::stop);
  EXPECT_EQ(cut.text, free.text.substr(0, free.text.find(o.stop[1])));
  EXPECT_EQ(streamed, cut.text);
}

TEST(Generate, CancelledRowsHandOutWhatTheyHaveRead) {
  const auto model = testing::small_model();
  Session s = testing::session_of(*model, 1);
  const Ids prompt = random_ids(4, 1);
  testing::read(s, {prompt});
  GenerateOptions o = drawing(1000);
  int asked = 0;
  o.cancelled = [&] { return ++asked > 5; };
  o.read_last = true;
  Snapshot saved;
  o.finished = [&](size_t, Snapshot snapshot) { saved = std::move(snapshot); };
  const Generated g = generate(s, {{prompt, 0}}, o)[0];
  EXPECT_EQ(g.finish, Finish::cancelled);
  EXPECT_EQ(g.tokens.size(), 5u);
  EXPECT_EQ(saved.tokens, 9);
}

}  // namespace
}  // namespace krait
