#include "krait/train/run.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <fstream>

#include "krait/base/file.h"
#include "krait/base/folder_lock.h"
#include "krait/io/model.h"
#include "krait/testing/files.h"
#include "krait/train/checkpoint.h"
#include "krait/train/fixture.h"
#include "krait/train/run_fixture.h"

namespace krait {
namespace {

namespace fs = std::filesystem;
using testing::losses;
using testing::stop_after;
using testing::weights_of;

class Runs : public ::testing::Test {
 protected:
  RunOptions options(const std::string& name) {
    write_file(folder_ / "train.txt", testing::nursery_text(60));
    write_file(folder_ / "valid.txt", testing::nursery_text(5));
    write_file(folder_ / "config.json",
               config_json(models::mamba_config(32, 2, 256, 1), Layout::huggingface, DType::f32));
    RunOptions o;
    o.train = testing::small_options();
    o.model = (folder_ / "config.json").string();
    o.data = {(folder_ / "train.txt").string()};
    o.valid = {(folder_ / "valid.txt").string()};
    o.out = (folder_ / name).string();
    o.eval_every = 4;
    o.save_every = 5;
    return o;
  }
  static std::vector<std::optional<double>> valid_losses(const fs::path& run) {
    std::vector<std::optional<double>> out;
    for (const LogRecord& r : read_log(run / "log.jsonl")) out.push_back(r.valid_loss);
    return out;
  }

  testing::TempDir folder_;
};

TEST_F(Runs, LeaveLogConfigAndModelsThatLoad) {
  const RunOptions o = options("run");
  const RunResult r = run_training(o, false, {});
  EXPECT_EQ(r.steps, 10);
  EXPECT_FALSE(r.interrupted);
  const std::vector<LogRecord> log = read_log(fs::path(o.out) / "log.jsonl");
  ASSERT_EQ(log.size(), 10u);
  EXPECT_EQ(log[3].step, 4);
  EXPECT_EQ(log[3].tokens, 4 * 4 * 32);
  EXPECT_TRUE(log[3].valid_loss && log[7].valid_loss && log[9].valid_loss);
  EXPECT_FALSE(log[4].valid_loss);
  EXPECT_EQ(r.best_loss, std::min({*log[3].valid_loss, *log[7].valid_loss, *log[9].valid_loss}));
  for (const char* name : {"last", "best"}) {
    const LoadedModel m = load_model(fs::path(o.out) / name, {});
    EXPECT_EQ(m.layout, Layout::huggingface);
    EXPECT_TRUE(fs::exists(fs::path(o.out) / name / "trainer.safetensors"));
  }
  EXPECT_TRUE(fs::exists(fs::path(o.out) / "config.toml"));
}

TEST_F(Runs, ResumedIsTheRunThatWasNeverStopped) {
  for (const bool carry : {false, true}) {
    RunOptions o = options(carry ? "whole-carry" : "whole");
    o.train.carry_state = carry;
    o.train.order = carry ? Order::sequential : Order::shuffle;
    o.train.dropout = 0.1f;
    run_training(o, false, {});
    RunOptions p = o;
    p.out = o.out + "-parts";
    // Stopped twice: where it was to be saved anyway, and in between.
    EXPECT_TRUE(run_training(p, false, stop_after(3)).interrupted);
    EXPECT_EQ(read_log(fs::path(p.out) / "log.jsonl").size(),
              4u);  // the step under way is finished
    EXPECT_TRUE(run_training(p, true, stop_after(7)).interrupted);
    const RunResult r = run_training(p, true, {});
    EXPECT_FALSE(r.interrupted);
    EXPECT_EQ(losses(p.out), losses(o.out));
    // Steps 4 and 8, at which the run was stopped, were to be validated.
    EXPECT_EQ(valid_losses(p.out), valid_losses(o.out));
    for (const char* name : {"last", "best"})
      EXPECT_EQ(weights_of(fs::path(p.out) / name), weights_of(fs::path(o.out) / name)) << name;
    EXPECT_EQ(run_training(p, true, {}).steps, 10);  // nothing left to do
  }
}

TEST_F(Runs, StoppedAtItsLastStepTheRunIsValidatedWhenItGoesOn) {
  const RunOptions o = options("run");
  EXPECT_TRUE(run_training(o, false, stop_after(9)).interrupted);
  EXPECT_FALSE(valid_losses(o.out).at(9));
  EXPECT_FALSE(run_training(o, true, {}).interrupted);
  EXPECT_TRUE(valid_losses(o.out).at(9));
  EXPECT_EQ(valid_losses(o.out).size(), 10u);
}

TEST_F(Runs, KilledBetweenLastAndBestTheRunGivesTheBetterOneToBest) {
  RunOptions o = options("run");
  o.valid.clear();
  o.keep = 2;
  run_training(o, false, {});  // checkpoints of steps 5 and 10, the later one better
  const fs::path run = o.out, best = run / "best";
  ASSERT_EQ(weights_of(best), weights_of(run / "last"));
  share_checkpoint(run / "step-00000005", best);
  run_training(o, true, {});
  EXPECT_EQ(weights_of(best), weights_of(run / "last"));
}

// Nothing is validated: the checkpoints that are due compete by training loss, not those of the stops.
TEST_F(Runs, StopsChangeNothingAboutWhichCheckpointIsBest) {
  RunOptions o = options("whole");
  o.valid.clear();
  run_training(o, false, {});
  const double best = read_progress(fs::path(o.out) / "best").best_loss;
  o.out += "-parts";
  for (const int64_t stop : {2, 5, 8}) run_training(o, stop > 2, stop_after(stop));
  run_training(o, true, {});
  EXPECT_EQ(read_progress(fs::path(o.out) / "best").best_loss, best);
}

TEST_F(Runs, ALogThatIsAheadOfTheCheckpointIsCutBack) {
  RunOptions o = options("run");
  run_training(o, false, {});
  const std::vector<double> whole = losses(o.out);
  RunOptions p = options("other");
  p.train.steps = 5;
  run_training(p, false, {});
  std::ofstream(fs::path(p.out) / "log.jsonl", std::ios::app)
      << "{\"step\":6,\"loss\":1.0}\n{\"step\":7,\"lo";
  p.train.steps = 10;
  run_training(p, true, {});
  EXPECT_EQ(losses(p.out), whole);
}

TEST_F(Runs, KilledInTheMiddleOfASaveTheCheckpointBeforeIsUsed) {
  RunOptions o = options("run");
  o.train.steps = 5;
  run_training(o, false, {});
  const fs::path last = fs::path(o.out) / "last";
  const std::string before = weights_of(last);
  // A child that dies while the next checkpoint is half written.
  const pid_t child = ::fork();
  if (child == 0) {
    write_directory(last, [](const fs::path& fresh) {
      write_file(fresh / "config.json", "{}");
      std::ofstream(fresh / "model.safetensors") << "half";
      ::_exit(9);
    });
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_EQ(WEXITSTATUS(status), 9);
  EXPECT_EQ(weights_of(last), before);
  o.train.steps = 10;
  EXPECT_EQ(run_training(o, true, {}).steps, 10);
  for (const fs::directory_entry& entry : fs::directory_iterator(o.out))
    EXPECT_EQ(entry.path().string().find(".part"), std::string::npos) << entry.path();

  const RunOptions whole = options("whole");
  run_training(whole, false, {});
  EXPECT_EQ(losses(o.out), losses(whole.out));
}

TEST_F(Runs, ASaveThatFailsLeavesTheCheckpointBefore) {
  RunOptions o = options("run");
  o.train.steps = 5;
  run_training(o, false, {});
  const fs::path last = fs::path(o.out) / "last";
  const std::string before = weights_of(last);
  EXPECT_THROW(write_directory(last,
                               [](const fs::path& fresh) {
                                 write_file(fresh / "config.json", "{}");
                                 fail("no space left on device");
                               }),
               Error);
  EXPECT_EQ(weights_of(last), before);
}

TEST_F(Runs, NotFiniteStopsTheRunAndKeepsTheLastGoodCheckpoint) {
  RunOptions o = options("run");
  o.train.steps = 5;
  run_training(o, false, {});
  const std::string before = weights_of(fs::path(o.out) / "last");
  o.train.steps = 50;
  o.save_every = 1000;
  o.train.lr = 1e30;
  const std::string message = testing::error_of([&] { run_training(o, true, {}); });
  EXPECT_NE(message.find("step "), std::string::npos) << message;
  EXPECT_NE(message.find("backbone."), std::string::npos) << message;
  EXPECT_EQ(weights_of(fs::path(o.out) / "last"), before);
}

TEST_F(Runs, OlderCheckpointsAreKeptAsAsked) {
  RunOptions o = options("run");
  o.save_every = 2;
  o.keep = 2;
  o.valid.clear();
  const RunResult r = run_training(o, false, {});
  EXPECT_FALSE(fs::exists(fs::path(o.out) / "step-00000006"));
  EXPECT_TRUE(fs::exists(fs::path(o.out) / "step-00000008"));
  EXPECT_EQ(weights_of(fs::path(o.out) / "step-00000010"), weights_of(fs::path(o.out) / "last"));
  // Without validation data, the training loss since the last save says which is best.
  const std::vector<double> l = losses(o.out);
  EXPECT_DOUBLE_EQ(r.best_loss, (l[8] + l[9]) / 2);
}

// A checkpoint has the tokenizer beside its weights.
TEST_F(Runs, GoOnWithoutTheFilesTheyWereStartedFrom) {
  RunOptions o = options("run");
  o.tokenizer = (folder_ / "tokenizer.json").string();
  std::string vocab;
  for (int c = 32; c < 127; ++c)
    vocab += fmt::format("{}\"{}{}\": {}", c > 32 ? ", " : "", c == '"' || c == '\\' ? "\\" : "",
                         static_cast<char>(c), c);
  write_file(
      o.tokenizer,
      fmt::format(R"({{"model": {{"type": "BPE", "vocab": {{{}, "\n": 10}}, "merges": []}}}})",
                  vocab));
  run_training(o, false, {});
  fs::remove(o.tokenizer);
  fs::remove(o.model);
  o.train.steps += 1;
  EXPECT_EQ(run_training(o, true, {}).steps, o.train.steps);
}

TEST_F(Runs, WhatCannotBeValidatedOrStartedFromIsNamedBeforeTheFirstStep) {
  RunOptions o = options("run");
  write_file(folder_ / "valid.txt", "a");
  EXPECT_NE(testing::error_of([&] { run_training(o, false, {}); }).find("valid.txt"),
            std::string::npos);
  EXPECT_FALSE(fs::exists(o.out));
  o = options("run");
  o.model.clear();
  o.from = (folder_ / "gone").string();
  EXPECT_NE(testing::error_of([&] {
              run_training(o, false, {});
            }).find("gone: expected a model directory"),
            std::string::npos);
  EXPECT_FALSE(fs::exists(o.out));
}

TEST_F(Runs, OneProcessTrainsInAFolderAndLogsOnce) {
  RunOptions o = options("run");
  o.log = (fs::path(o.out) / "log.jsonl").string();
  run_training(o, false, {});
  EXPECT_EQ(losses(o.out).size(), 10u);
  o.train.steps = 11;
  {
    const FolderLock other(o.out);
    EXPECT_NE(testing::error_of([&] { run_training(o, true, {}); }).find("another process"),
              std::string::npos);
  }
  EXPECT_EQ(losses(o.out).size(), 10u);
  EXPECT_EQ(run_training(o, true, {}).steps, 11);
}

TEST_F(Runs, OtherDataThanBeforeIsRefused) {
  const RunOptions o = options("run");
  run_training(o, false, {});
  std::string text = testing::nursery_text(60);
  write_file(folder_ / "elsewhere.txt", text);
  RunOptions moved = o;
  moved.data = {(folder_ / "elsewhere.txt").string()};
  run_training(moved, true, {});  // the same tokens
  std::swap(text[1000], text[1001]);
  ASSERT_NE(text, testing::nursery_text(60));
  write_file(o.data[0], text);
  testing::expect_other_data_refused(o);
}

TEST_F(Runs, ARunIsNotOverwritten) {
  const RunOptions o = options("run");
  run_training(o, false, {});
  EXPECT_NE(testing::error_of([&] { run_training(o, false, {}); }).find("--resume"),
            std::string::npos);
  RunOptions p = options("nothing-there");
  EXPECT_NE(testing::error_of([&] { run_training(p, true, {}); }).find("nothing-there"),
            std::string::npos);
  EXPECT_FALSE(fs::exists(p.out));
}

TEST_F(Runs, ACopyOfTheLogThatCannotBeWrittenLeavesNothingBehind) {
  RunOptions o = options("run");
  for (const fs::path& log : {folder_ / "missing" / "log.jsonl", folder_.path()}) {
    o.log = log.string();
    EXPECT_NE(testing::error_of([&] { run_training(o, false, {}); }).find(o.log),
              std::string::npos);
    EXPECT_FALSE(fs::exists(o.out));
  }
  o.log = (fs::path(o.out) / "copy.jsonl").string();  // there once the run is
  run_training(o, false, {});
  EXPECT_EQ(read_file(o.log), read_file(fs::path(o.out) / "log.jsonl"));
}

TEST_F(Runs, GoOnFromTheWeightsOfAModel) {
  RunOptions o = options("run");
  run_training(o, false, {});
  RunOptions p = options("tuned");
  p.model.clear();
  p.from = (fs::path(o.out) / "last").string();
  p.train.lr = 1e-4;
  run_training(p, false, {});
  EXPECT_LT(losses(p.out).front(), losses(o.out).front() - 1.0);
}

TEST_F(Runs, EpochsBecomeSteps) {
  RunOptions o = options("run");
  o.epochs = 1.0;
  o.valid.clear();
  const int64_t windows = (static_cast<int64_t>(testing::nursery_text(60).size()) - 1) / 32;
  EXPECT_EQ(run_training(o, false, {}).steps, (windows + 3) / 4);
}

TEST_F(Runs, SamplesAreTextOfTheModel) {
  RunOptions o = options("run");
  o.sample_every = 10;
  o.sample_prompt = "the cat";
  std::vector<std::string> texts;
  RunWatcher w;
  w.sample = [&](int64_t, const std::string& prompt, const std::string& text) {
    EXPECT_EQ(prompt, "the cat");
    texts.push_back(text);
  };
  run_training(o, false, w);
  ASSERT_EQ(texts.size(), 1u);
  EXPECT_GT(texts[0].size(), 100u);
}

}  // namespace
}  // namespace krait
