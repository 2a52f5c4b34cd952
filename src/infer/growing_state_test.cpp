// Sessions of a model whose state grows with every token: room is made when it is needed, and snapshots,
// rewinds, forks and files hold what was read, no more.
#include <gtest/gtest.h>

#include <cmath>

#include "krait/infer/document_reader.h"
#include "krait/infer/state_file.h"
#include "krait/io/config.h"
#include "krait/ops/attention/attention.h"
#include "krait/testing/files.h"
#include "krait/testing/small_model.h"

namespace krait {
namespace {

using testing::Ids;
using testing::random_ids;
using testing::read;

// Transformer++ over bytes, its last norm such that logits vary.
std::unique_ptr<models::LanguageModel> transformer() {
  auto model = std::make_unique<models::LanguageModel>(models::preset("byte-transformer-tiny"));
  model->params().allocate(nn::Purpose::inference, DType::f32);
  model->params().initialize(3);
  for (nn::Param& p : model->params())
    if (p.name == "backbone.norm_f.weight")
      for (int64_t i = 0; i < p.value.numel(); ++i) set(p.value, i, 8.0);
  return model;
}

std::vector<float> logits_of(const Session& s, int64_t row) {
  const int64_t V = s.logits().size(1);
  const float* p = s.logits().as<float>() + row * V;
  return {p, p + V};
}

void expect_same(const std::vector<float>& got, const std::vector<float>& expected,
                 const std::string& what) {
  ASSERT_EQ(got.size(), expected.size());
  double mean = 0, squares = 0, worst = 0;
  for (const float x : expected) mean += x / static_cast<double>(expected.size());
  for (const float x : expected) squares += (x - mean) * (x - mean);
  const double deviation = std::sqrt(squares / static_cast<double>(expected.size()));
  ASSERT_GT(deviation, 0.1) << "logits that hardly vary prove nothing";
  for (size_t i = 0; i < got.size(); ++i)
    worst =
        std::max(worst, std::abs(static_cast<double>(got[i]) - static_cast<double>(expected[i])));
  EXPECT_LE(worst, 1e-5 * deviation) << what;
}

Session session_of(const models::LanguageModel& model, int64_t batch, int64_t chunk,
                   int64_t context, DType activation = DType::f32) {
  SessionOptions o;
  o.batch = batch;
  o.chunk = chunk;
  o.context = context;
  o.activation = activation;
  return Session(model, o);
}

std::vector<float> whole(const models::LanguageModel& model, const Ids& ids) {
  const auto n = static_cast<int64_t>(ids.size());
  Session s = session_of(model, 1, n, n);
  read(s, {ids});
  return logits_of(s, 0);
}

TEST(GrowingState, T19_T20_WholeChunkedAndSteppedWithAndWithoutRoomFromTheStart) {
  const auto model = transformer();
  const Ids ids = random_ids(200, 1);
  const std::vector<float> expected = whole(*model, ids);
  for (const int64_t context : {0, 1, 64, 200, 1000}) {
    for (const int64_t chunk : {1, 3, 64, 512}) {
      Session s = session_of(*model, 1, chunk, context);
      read(s, {ids});
      expect_same(logits_of(s, 0), expected, fmt::format("context {} chunk {}", context, chunk));
    }
    Session s = session_of(*model, 1, 8, context);
    for (const int32_t id : ids) s.step({&id, 1});
    expect_same(logits_of(s, 0), expected, fmt::format("context {}, steps", context));
  }
}

TEST(GrowingState, BatchedForkedRewoundAndDroppedRows) {
  const auto model = transformer();
  const Ids a = random_ids(120, 1), b = random_ids(7, 2), c = random_ids(61, 3),
            more = random_ids(30, 4);
  const auto then = [&](Ids ids) {
    ids.insert(ids.end(), more.begin(), more.end());
    return whole(*model, ids);
  };
  Session s = session_of(*model, 3, 50, 0);
  read(s, {a, b, c});
  expect_same(logits_of(s, 0), whole(*model, a), "a");
  expect_same(logits_of(s, 1), whole(*model, b), "b");
  const Snapshot after_a = s.snapshot(0), after_b = s.snapshot(1);
  EXPECT_EQ(after_b.state.capacity(), 7);
  s.restore(1, after_a);  // a fork of a in the row of b
  read(s, {more, more, more});
  expect_same(logits_of(s, 0), then(a), "a and more");
  expect_same(logits_of(s, 1), then(a), "the fork");
  expect_same(logits_of(s, 2), then(c), "c and more");
  const int64_t keep[] = {1, 2};
  s.keep_rows(keep);
  s.restore(0, after_b);  // back to what is shorter
  read(s, {more, {}});
  expect_same(logits_of(s, 0), then(b), "b and more");
  expect_same(logits_of(s, 1), then(c), "untouched");
  s.restart(2);
  read(s, {b, a});
  expect_same(logits_of(s, 0), whole(*model, b), "b again");
  expect_same(logits_of(s, 1), whole(*model, a), "a again");
}

TEST(GrowingState, FilesHoldTheTokensReadAndGoOn) {
  const auto model = transformer();
  // In bfloat16 the cache holds what it is given as exactly, in half the memory; files are float32.
  for (const DType activation : {DType::f32, DType::bf16}) {
    const Ids a = random_ids(40, 1), b = random_ids(9, 2), more = random_ids(5, 4);
    Session s = session_of(*model, 2, 512, 5000, activation);
    read(s, {a, b});
    const testing::TempDir folder;
    const auto path = folder / "two.state";
    const Snapshot both[] = {s.snapshot(0), s.snapshot(1)};
    save_state(path, both, "hash");
    // Three layers of keys and values (128 floats each) for the longer of the two, not for the room there was.
    EXPECT_LT(std::filesystem::file_size(path), 2 * 40 * 3 * 2 * 128 * 4 + 8192u);
    const std::vector<Snapshot> rows = load_state(path, *model, "hash");
    ASSERT_EQ(rows.size(), 2u);
    Session t = session_of(*model, 2, 512, 0, activation);
    t.restore(0, rows[0]);
    t.restore(1, rows[1]);
    read(s, {more, more});
    read(t, {more, more});
    for (int64_t row : {0, 1}) EXPECT_EQ(logits_of(t, row), logits_of(s, row));
  }
}

TEST(GrowingState, T25_DocumentsOfAnyLength) {
  const auto model = transformer();
  const std::vector<Ids> documents = {random_ids(5, 1), random_ids(300, 2), random_ids(1, 3),
                                      random_ids(130, 4)};
  size_t next = 0;
  const int64_t V = model->config().padded_vocab();
  DocumentReader reader(
      *model, DType::f32,
      [&](Context& c, const Tensor& hidden, const DocumentPass& pass) {
        if (pass.ends.empty() || c.planning()) return;
        const Tensor logits = model->logits(c, gather_rows(c, hidden, pass.ends));
        for (int64_t i = 0; i < logits.size(0); ++i, ++next) {
          const float* p = logits.as<float>() + i * V;
          expect_same({p, p + V}, whole(*model, documents[next]), fmt::format("document {}", next));
        }
      },
      /*chunk=*/64);
  for (const Ids& d : documents) {
    reader.begin();
    reader.add(d);
    reader.end();
  }
  reader.finish();
  EXPECT_EQ(next, documents.size());
}

TEST(GrowingState, FilesWithNumbersThatNoRunLeavesAreRefused) {
  const auto model = transformer();
  Session s = session_of(*model, 1, 512, 0);
  read(s, {random_ids(6, 1)});
  const testing::TempDir folder;
  const auto refused = [&](const std::function<void(Snapshot&)>& spoil) {
    Snapshot one = s.snapshot(0);
    spoil(one);
    save_state(folder / "bad.state", {&one, 1}, "hash");
    return testing::error_of([&] { load_state(folder / "bad.state", *model, "hash"); });
  };
  const double nan = std::nan("");
  EXPECT_EQ(refused([](Snapshot&) {}), "");
  const auto spoiled = [&](const std::string& name, double value) {
    const std::string message = refused([&](Snapshot& one) {
      for (size_t p = 0; p < one.state.parts().size(); ++p)
        if (one.state.parts()[p].name == name) set(one.state.tensor(p), 0, value);
    });
    EXPECT_NE(message.find("bad.state: tensor \"" + name + "\""), std::string::npos) << message;
  };
  spoiled("state.0.k", nan);
  spoiled("state.0.length", 5);
  spoiled("state.0.length", 7);
  spoiled("state.0.length", nan);
  EXPECT_NE(refused([&](Snapshot& one) { one.logits[3] = HUGE_VALF; }).find("\"logits\""),
            std::string::npos);
}

TEST(GrowingState, SequencesEndWhereTokensAreNoLongerCounted) {
  Layout layout;
  models::LanguageModel model(parse_config(
      R"({"model_type": "mistral", "hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 256,
          "num_attention_heads": 2, "intermediate_size": 16, "sliding_window": 4})",
      "config.json", layout));
  model.params().allocate(nn::Purpose::inference, DType::f32);
  model.params().initialize(1);
  Session s = session_of(model, 1, 512, 0);
  read(s, {random_ids(9, 1)});
  Snapshot far = s.snapshot(0);
  far.tokens = ops::kMostCounted - 1;
  for (size_t p = 0; p < far.state.parts().size(); ++p)
    if (nn::counts_tokens(far.state.parts()[p]))
      set(far.state.tensor(p), 0, static_cast<double>(far.tokens));
  s.restore(0, far);
  const int32_t token = 7;
  s.step({&token, 1});
  EXPECT_EQ(s.tokens_read(0), ops::kMostCounted);
  for (const std::string& message : {testing::error_of([&] {
                                       s.step({&token, 1});
                                     }),
                                     testing::error_of([&] { read(s, {random_ids(2, 1)}); })})
    EXPECT_NE(message.find("counts to 16777216"), std::string::npos) << message;
}

}  // namespace
}  // namespace krait
