// Hostile tokenizer.json: one clear Error each, no crash, no memory beyond the file's size.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "krait/io/tokenizer/regex.h"
#include "krait/io/tokenizer/tokenizer.h"
#include "krait/testing/files.h"

namespace krait {
namespace {

using nlohmann::json;
using testing::error_of;

const char* const kModel = R"({"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]})";

std::string refusal(const std::string& text) {
  return error_of([&] { parse_tokenizer(text, "t.json"); });
}

// The refusal of a sound file with one member set.
std::string refusal_of(const char* key, const std::string& value) {
  json file = {{"model", json::parse(kModel)}};
  file[key] = json::parse(value);
  return refusal(file.dump());
}

std::string refusal_of_model(const char* key, const std::string& value) {
  json file = {{"model", json::parse(kModel)}};
  file["model"][key] = json::parse(value);
  return refusal(file.dump());
}

#define EXPECT_SAYS(message, part) EXPECT_NE((message).find(part), std::string::npos) << (message)

TEST(MalformedTokenizer, Refused) {
  EXPECT_EQ(refusal(std::string("{\"model\":") + kModel + "}"), "");
  EXPECT_SAYS(refusal(""), "malformed JSON at byte 1: syntax error while parsing");
  EXPECT_SAYS(refusal("[]"), "expected a JSON object");
  EXPECT_SAYS(refusal("{}"), "\"model\" is missing");
  EXPECT_SAYS(refusal_of_model("vocab", R"({"a":2147483648})"), "beyond 2147483647");
  EXPECT_SAYS(refusal_of_model("vocab", R"({"a":-1})"), "expected an id");
  EXPECT_SAYS(refusal_of_model("vocab", R"({"a":{}})"), "expected an id");
  EXPECT_SAYS(refusal_of_model("vocab", "null"), "are needed");
  EXPECT_SAYS(refusal_of_model("merges", R"(["a c"])"), "\"c\" is not in vocab");
  EXPECT_SAYS(refusal_of_model("merges", R"(["b a"])"), "\"ba\" is not in vocab");
  EXPECT_SAYS(refusal_of_model("merges", R"(["a  b"])"), "two tokens with a space");
  EXPECT_SAYS(refusal_of_model("merges", R"([["a"]])"), "expected a pair");
  EXPECT_SAYS(refusal_of_model("merges", R"([["a","b","c"]])"), "more than two");
  EXPECT_SAYS(refusal_of_model("merges", R"([[["a"]]])"), "array in a pair");
  EXPECT_SAYS(refusal_of_model("merges", "[1]"), "unexpected number");
  EXPECT_SAYS(refusal_of_model("type", "\"Unigram\""), "\"Unigram\" is not supported");
  EXPECT_SAYS(refusal_of_model("dropout", "0.1"), "dropout");
  EXPECT_SAYS(refusal_of_model("end_of_word_suffix", "\"</w>\""), "end_of_word_suffix");
  EXPECT_SAYS(refusal_of("normalizer", R"({"type":"Precompiled"})"), "normalizer: the type");
  EXPECT_SAYS(refusal_of("pre_tokenizer", R"({"type":"UnicodeScripts"})"), "\"UnicodeScripts\"");
  EXPECT_SAYS(refusal_of("decoder", R"({"type":"WordPiece"})"), "\"WordPiece\"");
  EXPECT_SAYS(refusal_of("post_processor", R"({"type":"BertProcessing"})"), "\"BertProcessing\"");
  EXPECT_SAYS(refusal_of("post_processor",
                         R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"x"}}]})"),
              "special_tokens has no \"x\"");
  EXPECT_SAYS(refusal_of("added_tokens", R"([{"content":1}])"), "expected a string");
  EXPECT_SAYS(refusal_of("pre_tokenizer",
                         R"({"type":"Split","pattern":{"Regex":"("},"behavior":"Isolated"})"),
              "regular expression \"(\"");
}

TEST(MalformedTokenizer, DeepJson) {
  const std::string deep(1'000'000, '[');
  EXPECT_SAYS(refusal(deep), "nested deeper");
  EXPECT_SAYS(refusal("{\"x\":" + deep), "nested deeper");
  std::string normalizer = R"({"type":"NFC"})";
  for (int i = 0; i < 100; ++i)
    normalizer = R"({"type":"Sequence","normalizers":[)" + normalizer + "]}";
  EXPECT_SAYS(refusal_of("normalizer", normalizer), "nested deeper");
}

TEST(MalformedTokenizer, DamagedFiles) {
  const std::string good =
      R"({"added_tokens":[{"id":3,"content":"<s>","special":true,"normalized":false}],)"
      R"("normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"Split","pattern":{"Regex":"\\s+|[^a]"},)"
      R"("behavior":"Isolated","invert":false},"decoder":{"type":"Metaspace","replacement":"▁"},)"
      R"("model":{"type":"BPE","unk_token":"a","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}})";
  ASSERT_EQ(refusal(good), "");
  const int refused = testing::damage(good, [](std::span<const std::byte> bytes) {
    const auto tokenizer =
        parse_tokenizer({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, "damaged");
    const std::vector<int32_t> ids = tokenizer->encode("ab <s>é\xFF", true);
    tokenizer->decode(ids);
  });
  EXPECT_GT(refused, static_cast<int>(good.size()));  // all cuts, and many flips
}

// What Oniguruma and PCRE2 read differently and no rewriting makes equal.
TEST(RegexTranslation, RefusesByName) {
  for (const char* pattern : {"a\\b", "a{1,2}+", "[a&&b]", "[[:alpha:]]", "\\R", "(*ACCEPT)",
                              "(?x: a)", "a(?i)b", "[\\W]", "\\xC3", "\\"})
    EXPECT_SAYS(error_of([&] { Regex::oniguruma(pattern); }), "not supported");
  EXPECT_EQ(translate_oniguruma("(?m:.)\\v\\u0041x{,3}"), "(?s:.)\\x0B\\x{0041}x{0,3}");
  EXPECT_EQ(
      translate_oniguruma("[^\\s]"),
      "[^\\x09-\\x0D\\x20\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}"
      "\\x{205F}\\x{3000}]");
}

TEST(RegexTranslation, HostilePatternGivesUp) {
  const Regex regex = Regex::oniguruma("(a|aa)+[bd]");
  EXPECT_SAYS(error_of([&] { regex.each_match(std::string(40, 'a') + "c", [](MatchSpan) {}); }),
              "gave up");
}

}  // namespace
}  // namespace krait
