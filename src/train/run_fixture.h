// What tests of whole runs look at.
#pragma once
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "krait/base/file.h"
#include "krait/testing/files.h"
#include "krait/train/run.h"

namespace krait::testing {

inline std::vector<double> losses(const std::filesystem::path& run) {
  std::vector<double> out;
  for (const LogRecord& r : read_log(run / "log.jsonl")) out.push_back(r.loss);
  return out;
}

inline std::string weights_of(const std::filesystem::path& checkpoint) {
  return read_file(checkpoint / "model.safetensors");
}

// A watcher that stops the run after this step.
inline RunWatcher stop_after(int64_t step) {
  const auto reached = std::make_shared<bool>(false);
  RunWatcher w;
  w.step = [=](const LogRecord& r, int64_t) { *reached = r.step >= step; };
  w.stop = [=] { return *reached; };
  return w;
}

// A run of these options, and one that is stopped after a step and goes on, leave the same.
inline void expect_resumed_is_whole(const RunOptions& whole, int64_t stopped_after) {
  run_training(whole, false, {});
  RunOptions parts = whole;
  parts.out = whole.out + "-parts";
  EXPECT_TRUE(run_training(parts, false, stop_after(stopped_after)).interrupted);
  EXPECT_EQ(run_training(parts, true, {}).steps, whole.train.steps);
  EXPECT_EQ(losses(parts.out), losses(whole.out));
  EXPECT_EQ(weights_of(std::filesystem::path(parts.out) / "last"),
            weights_of(std::filesystem::path(whole.out) / "last"));
}

// The run does not go on with what lies where its data was.
inline void expect_other_data_refused(const RunOptions& o) {
  const std::string before = weights_of(std::filesystem::path(o.out) / "last");
  RunOptions more = o;
  more.train.steps += 1;
  const std::string message = error_of([&] { run_training(more, true, {}); });
  EXPECT_NE(message.find("other data than the run was started with"), std::string::npos) << message;
  EXPECT_TRUE(weights_of(std::filesystem::path(o.out) / "last") == before);
}

}  // namespace krait::testing
