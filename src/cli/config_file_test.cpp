#include "krait/cli/config_file.h"

#include <gtest/gtest.h>

#include <CLI/CLI.hpp>

#include "krait/base/file.h"
#include "krait/testing/files.h"

namespace krait::cli {
namespace {

using Words = std::vector<std::string>;

struct ConfigFile : ::testing::Test {
  CLI::App app{"", "work"};
  int64_t steps = 0;
  bool fast = false;
  std::vector<std::string> data;
  std::string betas;
  testing::TempDir dir;

  void SetUp() override {
    app.add_option("--steps", steps);
    app.add_flag("--fast", fast);
    app.add_option("--data", data);
    app.add_option("--betas", betas);
    app.add_option("--config");
  }
  // The words that `text` adds to `typed`.
  Words added(const std::string& text, const Words& typed = {}) {
    write_file(dir / "c.toml", text);
    Words words = typed;
    words.insert(words.begin(), "--config=" + (dir / "c.toml").string());
    const size_t before = words.size();
    add_config_file(app, words);
    return Words(words.begin() + static_cast<ptrdiff_t>(before), words.end());
  }
};

TEST_F(ConfigFile, WritesEveryKindOfValueAsIfTyped) {
  EXPECT_EQ(added("steps = 12\nfast = true\ndata = [\"a b\", \"c\"]\nbetas = [0.9, 0.95]\n"),
            (Words{"--betas=0.9,0.95", "--data=a b", "--data=c", "--fast", "--steps=12"}));
  EXPECT_EQ(added("fast = false\n"), Words{});
}

TEST_F(ConfigFile, NumbersOfAnArrayAreOneValueAndArraysInItOneEach) {
  std::vector<std::string> ids;
  app.add_option("--ids", ids);
  EXPECT_EQ(added("ids = [1, 2, 3]\n"), Words{"--ids=1,2,3"});
  EXPECT_EQ(added("ids = [[1, 2], [3]]\n"), (Words{"--ids=1,2", "--ids=3"}));
  EXPECT_EQ(added("ids = [\"1,2\", \"3\"]\n"), (Words{"--ids=1,2", "--ids=3"}));
  EXPECT_EQ(added("ids = []\n"), Words{});
  EXPECT_NE(testing::error_of([&] { added("ids = [[[1]]]\n"); }).find("\"ids\": expected"),
            std::string::npos);
}

TEST_F(ConfigFile, TheCommandLineWins) {
  EXPECT_EQ(added("steps = 12\nbetas = \"1,2\"\n", {"--steps=3"}), Words{"--betas=1,2"});
  EXPECT_EQ(added("steps = 12\n", {"--steps", "3"}), Words{});
}

TEST_F(ConfigFile, WhatIsTypedWinsOverWhatItExcludes) {
  double epochs = 0;
  app.add_option("--epochs", epochs)->excludes("--steps");
  EXPECT_EQ(added("epochs = 2\n", {"--steps=3"}), Words{});
  EXPECT_EQ(added("steps = 3\n", {"--epochs=2"}), Words{});
}

TEST_F(ConfigFile, RefusesWhatIsNoOptionByName) {
  EXPECT_NE(testing::error_of([&] {
              added("stepz = 1\n");
            }).find("\"stepz\": `krait work` has no such option, did you mean steps?"),
            std::string::npos);
  EXPECT_NE(
      testing::error_of([&] { added("[steps]\na = 1\n"); }).find("\"steps\": expected a string"),
      std::string::npos);
  EXPECT_NE(
      testing::error_of([&] { added("fast = 3\n"); }).find("\"fast\": expected true or false"),
      std::string::npos);
  for (const std::string text : {"steps = \n", "[ .a]\n", "[,0]\n", "a = { b *= 3 }\n"})
    EXPECT_NE(testing::error_of([&] { added(text); }).find("line 1"), std::string::npos) << text;
}

TEST_F(ConfigFile, DamagedFilesAreReadOrRefused) {
  const auto add = [&](std::span<const std::byte> bytes) {
    Words words;
    add_config_text(app, {reinterpret_cast<const char*>(bytes.data()), bytes.size()}, "f", words);
  };
  EXPECT_GT(testing::damage("steps = 12\n[fast]\ndata = [\"a\\u00e9\", { b.c = 1 }]\n", add), 100);
}

}  // namespace
}  // namespace krait::cli
