#include "krait/train/options.h"

#include <gtest/gtest.h>

#include "krait/testing/files.h"

namespace krait {
namespace {

TrainOptions rate(Schedule s, int64_t steps, int64_t warmup) {
  TrainOptions o;
  o.lr = 1.0;
  o.min_lr = 0.1;
  o.schedule = s;
  o.steps = steps;
  o.warmup = warmup;
  return o;
}

TEST(Schedule, WarmUpRisesToTheFullRate) {
  for (const Schedule s : {Schedule::constant, Schedule::linear, Schedule::cosine, Schedule::wsd}) {
    const TrainOptions o = rate(s, 100, 10);
    EXPECT_DOUBLE_EQ(learning_rate(o, 1), 0.1);
    EXPECT_DOUBLE_EQ(learning_rate(o, 5), 0.5);
    EXPECT_DOUBLE_EQ(learning_rate(o, 10), 1.0);
  }
}

TEST(Schedule, TheWaysDown) {
  EXPECT_DOUBLE_EQ(learning_rate(rate(Schedule::constant, 100, 10), 100), 1.0);
  const TrainOptions linear = rate(Schedule::linear, 110, 10);
  EXPECT_DOUBLE_EQ(learning_rate(linear, 60), 0.55);
  EXPECT_DOUBLE_EQ(learning_rate(linear, 110), 0.1);
  const TrainOptions cosine = rate(Schedule::cosine, 110, 10);
  EXPECT_DOUBLE_EQ(learning_rate(cosine, 60), 0.55);
  EXPECT_NEAR(learning_rate(cosine, 35), 0.1 + 0.9 * 0.853553390593274, 1e-12);
  EXPECT_DOUBLE_EQ(learning_rate(cosine, 110), 0.1);
  const TrainOptions wsd = rate(Schedule::wsd, 100, 10);
  EXPECT_DOUBLE_EQ(learning_rate(wsd, 80), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(wsd, 90), 0.55);
  EXPECT_DOUBLE_EQ(learning_rate(wsd, 100), 0.1);
}

TEST(Schedule, RunsThatAreAllWarmUpOrOneStepLong) {
  EXPECT_DOUBLE_EQ(learning_rate(rate(Schedule::cosine, 5, 10), 5), 0.5);
  for (const Schedule s : {Schedule::constant, Schedule::linear, Schedule::cosine, Schedule::wsd})
    EXPECT_TRUE(learning_rate(rate(s, 1, 0), 1) > 0);
}

TEST(RunOptions, TomlHasEveryOptionAndReadsBackAsWritten) {
  RunOptions o;
  o.model = "byte-tiny";
  o.data = {"/data/a \"quoted\" name.txt"};
  o.sample_prompt = "two\nlines\\";
  o.train.lr = 3e-4;
  o.train.beta2 = 0.95f;
  const std::string toml = to_toml(o);
  for (const char* line :
       {"model = \"byte-tiny\"\n", "data = [\"/data/a \\\"quoted\\\" name.txt\"]\n",
        "recompute = \"cheap\"\n", "sample-prompt = \"two\\u000alines\\\\\"\n", "lr = 0.0003\n",
        "betas = [0.9, 0.95]\n", "eps = 1e-08\n", "order = \"shuffle\"\n", "carry-state = false\n",
        "dtype = \"float32\"\n"})
    EXPECT_NE(toml.find(line), std::string::npos) << line << toml;
}

TEST(RunOptions, WhatNoRunCanHaveIsNamed) {
  RunOptions good;
  good.data = {"a.txt"};
  good.out = "run";
  EXPECT_NO_THROW(check(good));
  const auto message = [&](auto change) {
    RunOptions o = good;
    change(o);
    return testing::error_of([&] { check(o); });
  };
  const auto starts = [](const std::string& text, const char* with) {
    return text.rfind(with, 0) == 0;
  };
  EXPECT_TRUE(starts(message([](RunOptions& o) { o.train.seq_len = 0; }), "seq-len"));
  EXPECT_TRUE(starts(message([](RunOptions& o) { o.train.batch_size = -1; }), "batch-size"));
  EXPECT_TRUE(starts(message([](RunOptions& o) { o.train.steps = 0; }), "steps"));
  EXPECT_TRUE(starts(message([](RunOptions& o) { o.train.min_lr = 1; }), "min-lr"));
  EXPECT_TRUE(starts(message([](RunOptions& o) { o.train.carry_state = true; }), "carry-state"));
  EXPECT_TRUE(starts(message([](RunOptions& o) { o.train.dtype = DType::f16; }), "dtype"));
  // A run could not go on from such a config.toml.
  EXPECT_NE(message([](RunOptions& o) {
              o.data = {"caf\xe9.txt"};
            }).find("UTF-8 text, got the byte 0xe9"),
            std::string::npos);
  EXPECT_TRUE(starts(message([](RunOptions& o) { o.data = {""}; }), "data, valid"));
  EXPECT_NE(message([](RunOptions& o) { o.data.clear(); }), "");
  EXPECT_NE(message([](RunOptions& o) { o.valid = o.data = {"-"}; }), "");
}

}  // namespace
}  // namespace krait
