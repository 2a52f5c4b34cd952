// Heads that judge sequences, on the blocks of every family: that they learn, and that neither batches nor
// stops change what they learn.
#include <gtest/gtest.h>

#include <cmath>

#include "krait/base/file.h"
#include "krait/data/sequences.h"
#include "krait/io/any_model.h"
#include "krait/testing/files.h"
#include "krait/testing/op_test.h"
#include "krait/train/run_fixture.h"
#include "krait/train/trainer.h"

namespace krait {
namespace {

namespace fs = std::filesystem;
using testing::losses;

constexpr const char* kFamilies[] = {
    R"({"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 256,
        "state_size": 4)",
    R"({"d_model": 16, "n_layer": 2, "vocab_size": 256, "ssm_cfg": {"layer": "Mamba2",
        "d_state": 4, "headdim": 8})",
    R"({"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 256,
        "num_attention_heads": 2, "intermediate_size": 32)",
    R"({"model_type": "s4", "hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 256, "state_size": 8,
        "mode": "dplr", "l_kernel": 300, "bidirectional": true, "norm": "batch", "prenorm": false)",
    R"({"model_type": "blocks", "hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 256,
        "layers": ["bimamba+mlp", "mamba3"], "bimamba": {"d_state": 4, "shared": true},
        "mamba3": {"d_state": 4, "headdim": 8}, "mlp": {"d_inner": 32})",
};

class SequenceRuns : public ::testing::Test {
 protected:
  // Texts in which one letter decides, at a place of its own.
  void write_texts() {
    std::string lines;
    for (uint64_t i = 0; i < 32; ++i) {
      const Philox rng{i, 5};
      std::string text;
      for (uint64_t k = 0; k < 4 + i % 7; ++k) text += static_cast<char>('a' + rng.words(k)[0] % 3);
      text[rng.words(99)[0] % text.size()] = i % 2 ? 'X' : 'Y';
      lines += fmt::format("{{\"text\": \"{}\", \"label\": \"{}\"}}\n", text, i % 2 ? "ex" : "why");
    }
    write_file(dir_ / "data.jsonl", lines);
  }
  // The mean of a series is the target.
  void write_series() {
    std::string lines;
    for (uint64_t i = 0; i < 32; ++i) {
      std::string values;
      double sum = 0;
      const uint64_t n = 3 + i % 4;
      for (uint64_t k = 0; k < n; ++k) {
        const double x = Philox{i, 6}.normal(k);
        values += fmt::format("{}[{}, 1]", k ? ", " : "", x);
        sum += x;
      }
      lines += fmt::format("{{\"values\": [{}], \"target\": {}}}\n", values,
                           sum / static_cast<double>(n));
    }
    write_file(dir_ / "data.jsonl", lines);
  }
  RunOptions options(const std::string& name, const char* family, const std::string& head) {
    write_file(dir_ / (name + ".json"), std::string(family) + head + "}");
    RunOptions o;
    o.train.device = testing::test_device();
    o.train.batch_size = 16;
    o.train.steps = 60;
    o.train.lr = 1e-2;
    o.train.seed = 3;
    o.model = (dir_ / (name + ".json")).string();
    o.data = o.valid = {(dir_ / "data.jsonl").string()};
    o.out = (dir_ / name).string();
    return o;
  }
  testing::TempDir dir_;
};

TEST_F(SequenceRuns, EveryFamilyLearnsToClassify) {
  write_texts();
  int n = 0;
  for (const char* family : kFamilies)
    for (const char* pooling : {"last", "mean", "token"}) {
      RunOptions o = options(fmt::format("run{}", n++), family, "");
      o.task = "classification";
      o.pooling = pooling;
      const RunResult r = run_training(o, false, {});
      EXPECT_NEAR(losses(o.out).front(), std::log(2.0), 0.4) << family << pooling;
      EXPECT_LT(r.best_loss, 0.2) << family << pooling;
      const LoadedAny best = load_any_model(fs::path(o.out) / "best", {});
      const models::Task& task =
          dynamic_cast<const models::LanguageModel&>(*best.model).config().task;
      EXPECT_EQ(task.labels, (std::vector<std::string>{"ex", "why"}));
    }
}

TEST_F(SequenceRuns, EveryFamilyLearnsANumberOfASeries) {
  write_series();
  int n = 0;
  for (const char* family : kFamilies) {
    const RunOptions o = options(
        fmt::format("run{}", n++), family,
        R"(, "problem_type": "regression", "num_labels": 1, "input_size": 2, "pooling": "mean")");
    const RunResult r = run_training(o, false, {});
    EXPECT_LT(r.best_loss, 0.03) << family;  // the targets' variance is about 0.25
  }
}

// Packed side by side or each alone: the loss over all is the same.
TEST_F(SequenceRuns, T25_SequencesOfABatchDoNotHearOfEachOther) {
  write_texts();
  for (const char* family : kFamilies)
    for (const char* pooling : {"last", "mean", "token"}) {
      const AnyConfig config = [&] {
        Layout layout;
        return parse_config(
            std::string(family) + fmt::format(R"(, "problem_type": "single_label_classification",
                                                  "pooling": "{}"}})",
                                              pooling),
            "config", layout);
      }();
      SequenceFormat format{.vocab_size = 256, .place = std::string(pooling) == "token"};
      const SequenceExamples data({(dir_ / "data.jsonl").string()}, format, {}, {});
      double loss[2];
      for (const int64_t B : {1, 8}) {
        const auto model = make_model(config);
        model->params().allocate(nn::Purpose::training, DType::f32, false, testing::test_device());
        model->params().initialize(1);
        TrainOptions o;
        o.batch_size = B;
        o.seq_len = 16;
        Trainer trainer(*model, std::make_unique<ExampleBatcher>(data, B, Order::sequential, 0), o);
        loss[B > 1] = trainer.validate(data)->loss;
      }
      EXPECT_NEAR(loss[0], loss[1], 1e-5) << family << pooling;
    }
}

TEST_F(SequenceRuns, ResumedIsTheRunThatWasNeverStopped) {
  write_texts();
  RunOptions o = options("whole", kFamilies[0], "");
  o.task = "classification";
  o.pooling = "token";
  o.train.steps = 10;
  o.train.dropout = 0.1f;
  testing::expect_resumed_is_whole(o, 4);
}

TEST_F(SequenceRuns, OtherDataThanBeforeIsRefused) {
  const auto expect_refused = [&](const RunOptions& o, std::string_view part,
                                  std::string_view other) {
    const std::string before = read_file(o.data[0]);
    std::string text = before;
    text.replace(text.find(part, text.size() / 2), part.size(), other);
    write_file(o.data[0], text);
    testing::expect_other_data_refused(o);
    write_file(o.data[0], before);
  };
  write_texts();
  RunOptions o = options("texts", kFamilies[0], "");
  o.task = "classification";
  o.train.steps = 2;
  run_training(o, false, {});
  expect_refused(o, "X", "Y");
  expect_refused(o, "\"why\"", "\"ex\"");
  write_series();
  o = options("series", kFamilies[0], "");
  o.task = "regression";
  o.train.steps = 2;
  run_training(o, false, {});
  expect_refused(o, ", 1]", ", 2]");
  expect_refused(o, "\"target\": ", "\"target\": 0.5, \"before\": ");
}

TEST_F(SequenceRuns, WhatCannotBeIsRefused) {
  write_texts();
  const auto message = [&](const std::function<void(RunOptions&)>& change) {
    RunOptions o = options("run", kFamilies[0], "");
    o.task = "classification";
    change(o);
    return testing::error_of([&] { run_training(o, false, {}); });
  };
  EXPECT_NE(message([](RunOptions& o) { o.task = "ranking"; }).find("task"), std::string::npos);
  EXPECT_NE(message([](RunOptions& o) { o.pooling = "first"; }).find("pooling"), std::string::npos);
  EXPECT_NE(message([](RunOptions& o) { o.task = "regression"; }).find("target"),
            std::string::npos);
  EXPECT_NE(message([](RunOptions& o) { o.train.drop_path = 0.1f; }).find("drop-path"),
            std::string::npos);
  EXPECT_NE(message([](RunOptions& o) {
              o.train.carry_state = true;
              o.train.order = Order::sequential;
            }).find("carry-state"),
            std::string::npos);
}

}  // namespace
}  // namespace krait
