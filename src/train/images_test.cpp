// Classifiers of images, trained: that they learn, and that runs of them have what all runs have.
#include <gtest/gtest.h>

#include <cmath>

#include "krait/base/file.h"
#include "krait/base/threads.h"
#include "krait/data/images.h"
#include "krait/io/any_model.h"
#include "krait/io/npy.h"
#include "krait/testing/files.h"
#include "krait/testing/op_test.h"
#include "krait/train/run_fixture.h"
#include "krait/train/trainer.h"

namespace krait {
namespace {

namespace fs = std::filesystem;
using testing::losses;

constexpr int64_t kSize = 12;

// Stripes along x or along y, of random width and phase, with noise: no single pixel tells the class.
std::vector<float> stripes(bool upright, uint64_t seed) {
  const Philox rng{seed, 77};
  const double width = 1 + rng.uniform_double(0), phase = 6.28 * rng.uniform_double(1);
  std::vector<float> v;
  for (int64_t i = 0; i < 3 * kSize * kSize; ++i) {
    const auto x = static_cast<double>(upright ? i % kSize : i / kSize % kSize);
    v.push_back(static_cast<float>(std::sin(x * width + phase) +
                                   0.2 * rng.normal(static_cast<uint64_t>(i + 2))));
  }
  return v;
}

class ImageRuns : public ::testing::Test {
 protected:
  void SetUp() override {
    write_images("train", 24, 1);
    write_images("valid", 8, 1000);
    write_file(dir_ / "config.json",
               R"({"model_type": "vim", "image_size": 12, "patch_size": 4, "hidden_size": 16,
                   "num_hidden_layers": 2, "num_classes": 2})");
  }

  void write_images(const std::string& name, int n, uint64_t seed) {
    for (const bool upright : {false, true}) {
      const fs::path folder = dir_ / name / (upright ? "upright" : "lying");
      fs::create_directories(folder);
      for (int i = 0; i < n; ++i) {
        auto v = stripes(upright, seed++);
        write_npy(folder / fmt::format("{:02}.npy", i),
                  Tensor(v.data(), DType::f32, {3, kSize, kSize}));
      }
    }
  }

  RunOptions options(const std::string& name) const {
    RunOptions o;
    o.train.device = testing::test_device();
    o.train.batch_size = 8;
    o.train.steps = 10;
    o.train.lr = 3e-3;
    o.train.seed = 1;
    o.model = (dir_ / "config.json").string();
    o.data = {(dir_ / "train").string()};
    o.valid = {(dir_ / "valid").string()};
    o.out = (dir_ / name).string();
    o.eval_every = 4;
    o.save_every = 5;
    return o;
  }

  testing::TempDir dir_;
};

TEST_F(ImageRuns, LearnToTellTwoClassesApart) {
  RunOptions o = options("run");
  o.train.steps = 60;
  o.train.drop_path = 0.1f;
  const RunResult r = run_training(o, false, {});
  EXPECT_NEAR(losses(o.out).front(), std::log(2.0), 0.3);
  EXPECT_LT(r.best_loss, 0.2);  // of images that it has not seen
  const std::vector<LogRecord> log = read_log(fs::path(o.out) / "log.jsonl");
  EXPECT_EQ(log[2].tokens, 3 * 8);  // images
  EXPECT_FALSE(log[2].valid_accuracy);
  EXPECT_GT(log.back().valid_accuracy.value(), 0.9);
  const LoadedAny best = load_any_model(fs::path(o.out) / "best", {});
  const auto& config = dynamic_cast<const models::VisionMamba&>(*best.model).config();
  EXPECT_EQ(config.labels, (std::vector<std::string>{"lying", "upright"}));
}

// Where a config does not say how many classes there are, the data does; where it says more than the data has, the names
// that are known are kept, so that other data is judged by them.
TEST_F(ImageRuns, TheModelKnowsTheClassesOfTheDataByName) {
  const auto labels = [&](const std::string& name, const std::string& classes) {
    RunOptions o = options(name);
    o.model = (dir_ / (name + ".json")).string();
    o.train.steps = 1;
    write_file(o.model,
               R"({"model_type": "vim", "image_size": 12, "patch_size": 4, "hidden_size": 16,
                            "num_hidden_layers": 1)" +
                   classes + "}");
    run_training(o, false, {});
    const LoadedAny last = load_any_model(fs::path(o.out) / "last", {});
    return dynamic_cast<const models::VisionMamba&>(*last.model).config().labels;
  };
  using Names = std::vector<std::string>;
  EXPECT_EQ(labels("open", ""), (Names{"lying", "upright"}));
  EXPECT_EQ(labels("hugging-face", R"(, "num_labels": 2)"), (Names{"lying", "upright"}));
  EXPECT_EQ(labels("more", R"(, "num_classes": 3)"), (Names{"lying", "upright", "LABEL_2"}));
}

TEST_F(ImageRuns, OtherDataThanBeforeIsRefused) {
  const RunOptions o = options("run");
  run_training(o, false, {});
  run_training(o, true, {});
  fs::rename(dir_ / "train/lying/05.npy",
             dir_ / "train/lying/98.npy");  // another place in the order
  testing::expect_other_data_refused(o);
}

TEST_F(ImageRuns, ResumedIsTheRunThatWasNeverStopped) {
  RunOptions o = options("whole");
  o.train.drop_path = 0.3f;
  o.train.label_smoothing = 0.1f;
  testing::expect_resumed_is_whole(o, 3);
}

TEST_F(ImageRuns, NeitherRecomputingNorThreadsChangeAnything) {
  RunOptions o = options("one");
  o.train.drop_path = 0.3f;
  o.train.steps = 4;
  const int before = threads();
  set_threads(1);
  run_training(o, false, {});
  RunOptions p = o;
  p.out = o.out + "-again";
  p.train.recompute = Recompute::layer;
  set_threads(3);
  run_training(p, false, {});
  set_threads(before);
  EXPECT_EQ(losses(p.out), losses(o.out));
}

TEST_F(ImageRuns, LabelSmoothingAndDropPathChangeTheTraining) {
  RunOptions plain = options("plain"), smooth = options("smooth"), drop = options("drop");
  smooth.train.label_smoothing = 0.2f;
  drop.train.drop_path = 0.5f;
  for (const RunOptions& o : {plain, smooth, drop}) run_training(o, false, {});
  EXPECT_NE(losses(smooth.out), losses(plain.out));
  EXPECT_NE(losses(drop.out), losses(plain.out));
}

TEST_F(ImageRuns, WhatCannotBeIsRefused) {
  RunOptions o = options("run");
  o.train.dropout = 0.1f;
  EXPECT_NE(testing::error_of([&] { run_training(o, false, {}); }).find("drop-path"),
            std::string::npos);
  o = options("run");
  fs::rename(dir_ / "valid" / "lying", dir_ / "valid" / "standing");
  EXPECT_NE(testing::error_of([&] { run_training(o, false, {}); }).find("standing"),
            std::string::npos);
  o = options("run");
  fs::create_directories(dir_ / "train" / "third");
  fs::copy(dir_ / "train" / "upright" / "00.npy", dir_ / "train" / "third");
  EXPECT_NE(testing::error_of([&] { run_training(o, false, {}); }).find("the model has 2"),
            std::string::npos);
}

}  // namespace
}  // namespace krait
