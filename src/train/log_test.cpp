#include "krait/train/log.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <limits>

#include "krait/base/file.h"
#include "krait/base/json.h"
#include "krait/testing/files.h"
#include "krait/train/status.h"

namespace krait {
namespace {

LogRecord record(int64_t step) { return {step, 1.5, 0.25, 1e-3, step * 64, 1000.0, 0.5, {}}; }

TEST(RunLog, HasTheKeysOfTheContract) {
  const testing::TempDir folder;
  RunLog log(folder / "log.jsonl", 0);
  LogRecord r = record(1);
  r.valid_loss = 1.25;
  r.valid_accuracy = 0.75;
  log.append(r);
  r = record(2);
  r.loss = std::numeric_limits<double>::quiet_NaN();
  log.append(r);
  EXPECT_EQ(read_file(folder / "log.jsonl"),
            "{\"step\":1,\"loss\":1.5,\"grad_norm\":0.25,\"lr\":0.001,\"tokens\":64,"
            "\"tokens_per_s\":1000.0,\"seconds\":0.5,\"valid_loss\":1.25,"
            "\"valid_accuracy\":0.75}\n"
            "{\"step\":2,\"loss\":null,\"grad_norm\":0.25,\"lr\":0.001,\"tokens\":128,"
            "\"tokens_per_s\":1000.0,\"seconds\":0.5}\n");
  const std::vector<LogRecord> back = read_log(folder / "log.jsonl");
  ASSERT_EQ(back.size(), 2u);
  EXPECT_EQ(back[0].valid_loss, 1.25);
  EXPECT_EQ(back[0].valid_accuracy, 0.75);
  EXPECT_FALSE(back[1].valid_accuracy);
  EXPECT_TRUE(std::isnan(back[1].loss));
}

TEST(RunLog, ResumingDropsWhatCameAfterTheCheckpoint) {
  const testing::TempDir folder;
  const auto path = folder / "log.jsonl";
  {
    RunLog log(path, 0);
    for (int64_t s = 1; s <= 5; ++s) log.append(record(s));
  }
  RunLog log(path, 3);
  log.append(record(4));
  const std::vector<LogRecord> back = read_log(path);
  ASSERT_EQ(back.size(), 4u);
  EXPECT_EQ(back[3].step, 4);
}

TEST(RunLog, GoesWhereStdoutGoes) {
  const testing::TempDir folder;
  const int fd = ::open((folder / "f").c_str(), O_WRONLY | O_CREAT, 0600);
  RunLog log(fmt::format("/dev/fd/{}", fd), 2);
  log.append(record(3));
  log.append(record(4));
  ::close(fd);
  ASSERT_EQ(read_log(folder / "f").size(), 2u);
}

TEST(RunLog, MalformedLinesAreNamedAndACutEndIsNone) {
  const testing::TempDir folder;
  write_file(folder / "cut", "{\"step\":1,\"loss\":2}\n{\"step\":2,\"lo");
  EXPECT_EQ(read_log(folder / "cut").size(), 1u);
  write_file(folder / "bad", "{\"step\":1,\"loss\":2}\nnonsense\n");
  const std::string message = testing::error_of([&] { read_log(folder / "bad"); });
  EXPECT_NE(message.find("bad:2"), std::string::npos) << message;
  write_file(folder / "typed", "{\"step\":\"one\"}\n");
  EXPECT_NE(testing::error_of([&] { read_log(folder / "typed"); }), "");
}

TEST(RunLog, AFullDiskIsNamed) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "there is no /dev/full";
  RunLog log("/dev/full", 0);
  EXPECT_EQ(testing::error_of([&] { log.append(record(1)); }),
            "cannot write /dev/full: No space left on device");
}

TEST(Status, OneLineSaysHowItGoes) {
  EXPECT_EQ(clock_text(130), "2:10");
  EXPECT_EQ(clock_text(3723), "1:02:03");
  LogRecord validated = record(100);
  validated.valid_loss = 1.25;
  EXPECT_EQ(status_text(record(120), 1000, validated, 130, "tokens"),
            "step 120/1000  loss 1.5000  valid 1.2500  norm 0.250  lr 1.00e-03  1000 tokens/s  "
            "2:10 left");
  validated.valid_accuracy = 0.7123;
  EXPECT_EQ(status_text(record(120), 1000, validated, 130, "examples"),
            "step 120/1000  loss 1.5000  valid 1.2500  accuracy 0.712  norm 0.250  lr 1.00e-03  "
            "1000 examples/s  2:10 left");
}

}  // namespace
}  // namespace krait
