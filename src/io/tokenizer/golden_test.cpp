// The strings of the golden files: ids, ids with special tokens, and texts, equal to the Hugging Face
// library's; and whole texts round trip.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "krait/base/file.h"
#include "krait/io/tokenizer/tokenizer.h"
#include "krait/testing/files.h"

namespace krait {
namespace {

namespace fs = std::filesystem;

TEST(GoldenTokenizers, IdsAndTexts) {
  KRAIT_GOLDEN_OR_SKIP(folder);
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().filename().string().starts_with("tokenizer-")) files.push_back(entry.path());
  if (files.empty()) GTEST_SKIP() << "no tokenizer-*.json in " << folder;
  std::sort(files.begin(), files.end());
  for (const fs::path& file : files) {
    const auto golden = nlohmann::json::parse(read_file(file));
    const std::string name = golden.at("tokenizer");
    const auto tokenizer = load_tokenizer(folder / "../tokenizers" / name);
    ASSERT_FALSE(golden.at("cases").empty()) << name;
    for (const auto& c : golden.at("cases")) {
      const std::string text = c.at("text");
      SCOPED_TRACE(name + ": " + c.at("text").dump());
      const std::vector<int32_t> ids = c.at("ids");
      EXPECT_EQ(tokenizer->encode(text, false), ids);
      EXPECT_EQ(tokenizer->encode(text, true),
                c.contains("ids_with_special")
                    ? c.at("ids_with_special").get<std::vector<int32_t>>()
                    : ids);
      const std::string decoded = tokenizer->decode(ids);
      EXPECT_EQ(decoded, c.at("decoded").get<std::string>());
      StreamDecoder stream(*tokenizer);
      std::string streamed;
      for (const int32_t id : ids) streamed += stream.push(id);
      EXPECT_EQ(streamed + stream.finish(), decoded);
    }
  }
}

// Byte-level tokenizers without a normalizer lose nothing, whatever the text.
TEST(GoldenTokenizers, ByteLevelRoundTrip) {
  KRAIT_GOLDEN_OR_SKIP(folder);
  const fs::path file = folder / "../tokenizers/shakespeare-1k.json";
  if (!fs::exists(file)) GTEST_SKIP() << "no " << file;
  const auto tokenizer = load_tokenizer(file);
  for (const char* name : {"tinyshakespeare.txt", "wikitext2-valid.txt"}) {
    const fs::path path = folder / "../data/text" / name;
    if (!fs::exists(path)) GTEST_SKIP() << "no " << path;
    const std::string text = read_file(path);
    EXPECT_TRUE(tokenizer->decode(tokenizer->encode(text, false)) == text) << name;
  }
}

}  // namespace
}  // namespace krait
