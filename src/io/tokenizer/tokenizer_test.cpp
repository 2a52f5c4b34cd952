// Rules of tokenizer.json on tokenizers of a few tokens. The expected ids are those of the Hugging Face
// `tokenizers` library 0.23.3 on the same files, or follow from a rule that the test names.
#include "krait/io/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "krait/testing/files.h"

namespace krait {
namespace {

using nlohmann::json;
using testing::error_of;
using Ids = std::vector<int32_t>;

// A file whose model has `tokens` with ids 0, 1, ...
json file_of(const std::vector<std::string>& tokens, json merges = json::array()) {
  json vocab = json::object();
  for (const std::string& token : tokens) vocab[token] = vocab.size();
  return {{"version", "1.0"},
          {"added_tokens", json::array()},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", std::move(merges)}}}};
}

std::unique_ptr<Tokenizer> parse(const json& file) { return parse_tokenizer(file.dump(), "t"); }

json added(const std::string& content, json flags = json::object()) {
  flags["content"] = content;
  if (!flags.contains("normalized")) flags["normalized"] = false;
  return flags;
}

std::string streamed(const Tokenizer& tokenizer, const Ids& ids) {
  StreamDecoder stream(tokenizer);
  std::string out;
  for (const int32_t id : ids) out += stream.push(id);
  return out + stream.finish();
}

TEST(ByteTokenizer, BytesAreIds) {
  const auto tokenizer = byte_tokenizer();
  std::string all;
  for (int b = 255; b >= 0; --b) all += static_cast<char>(b);
  const Ids ids = tokenizer->encode(all, true);
  EXPECT_EQ(ids.size(), 256u);
  EXPECT_EQ(ids[0], 255);
  EXPECT_EQ(tokenizer->decode(ids), all);
  EXPECT_EQ(tokenizer->vocab_size(), 256);
  StreamDecoder stream(*tokenizer);
  EXPECT_EQ(stream.push(0xC3), "");
  EXPECT_EQ(stream.push(0xA9), "é");
  EXPECT_EQ(stream.push(0xE2), "");
  EXPECT_EQ(stream.finish(), "\xE2");
  EXPECT_EQ(streamed(*tokenizer, ids), all);
}

TEST(Bpe, MergesInOrderOfRankThenLeft) {
  const json merges = {"b c", {"a", "b"}, "a a", "bc a"};  // strings and pairs
  const auto tokenizer = parse(file_of({"a", "b", "c", "bc", "ab", "aa", "bca"}, merges));
  EXPECT_EQ(tokenizer->encode("abc", false), (Ids{0, 3}));   // b c before a b
  EXPECT_EQ(tokenizer->encode("aaa", false), (Ids{5, 0}));   // the left of equal pairs
  EXPECT_EQ(tokenizer->encode("abca", false), (Ids{0, 6}));  // a pair that a merge made
  EXPECT_EQ(tokenizer->encode("aab", false), (Ids{0, 4}));
  EXPECT_EQ(tokenizer->encode("", false), Ids{});
}

TEST(Bpe, UnknownCharacters) {
  json file = file_of({"a", "b", "ab", "<unk>"}, {"a b"});
  EXPECT_EQ(parse(file)->encode("a?b", false), Ids{2});  // dropped: a and b become neighbours
  file["model"]["unk_token"] = "<unk>";
  EXPECT_EQ(parse(file)->encode("a??b", false), (Ids{0, 3, 3, 1}));
  file["model"]["fuse_unk"] = true;
  EXPECT_EQ(parse(file)->encode("a??b?", false), (Ids{0, 3, 1, 3}));
  file["model"]["unk_token"] = "<none>";
  const auto tokenizer = parse(file);
  EXPECT_EQ(tokenizer->encode("ab", false), Ids{2});
  EXPECT_NE(error_of([&] { tokenizer->encode("?", false); }).find("<none>"), std::string::npos);
}

TEST(Bpe, ByteFallback) {
  json file = file_of({"a", "<unk>", "<0xC3>", "<0xA9>"});
  file["model"]["unk_token"] = "<unk>";
  file["model"]["byte_fallback"] = true;
  const auto tokenizer = parse(file);
  EXPECT_EQ(tokenizer->encode("aéa", false), (Ids{0, 2, 3, 0}));
  EXPECT_EQ(tokenizer->encode("aèa", false), (Ids{0, 1, 0}));  // no <0xA8>: the whole is unknown
  EXPECT_EQ(tokenizer->encode("aèéa", false), (Ids{0, 2, 3, 1, 0}));  // the library's order
}

TEST(Bpe, IgnoreMerges) {
  json file = file_of({"a", "b", "ab"});
  EXPECT_EQ(parse(file)->encode("ab", false), (Ids{0, 1}));
  file["model"]["ignore_merges"] = true;
  EXPECT_EQ(parse(file)->encode("ab", false), Ids{2});
  EXPECT_EQ(parse(file)->encode("aba", false), (Ids{0, 1, 0}));
}

// A text that is one word is cut where no merge can cross; merges over bytes forbid the cut.
TEST(Bpe, LongWordsAreCutOnlyWhereItChangesNothing) {
  std::string text, expected_cut;
  for (int i = 0; i < 3000; ++i) text += "ab\n\ncb";
  json file = file_of({"a", "b", "c", "ab", "<0x0A>"}, {"a b"});
  file["model"]["byte_fallback"] = true;
  Ids plain, joined;
  for (int i = 0; i < 3000; ++i) {
    plain.insert(plain.end(), {3, 4, 4, 2, 1});
    joined.insert(joined.end(), {3, 5, 2, 1});
  }
  EXPECT_EQ(parse(file)->encode(text, false), plain);
  file["model"]["vocab"]["<0x0A><0x0A>"] = 5;
  file["model"]["merges"].push_back({"<0x0A>", "<0x0A>"});
  EXPECT_EQ(parse(file)->encode(text, false), joined);
}

TEST(PreTokenizers, Metaspace) {
  json file = file_of({"▁", "a", "▁a", "<s>"}, {"▁ a"});
  file["added_tokens"] = json::array({added("<s>", {{"special", true}})});
  json& spec = file["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "▁"}};
  spec["prepend_scheme"] = "first";
  EXPECT_EQ(parse(file)->encode("a<s>a a", false), (Ids{2, 3, 1, 2}));
  EXPECT_EQ(parse(file)->encode(" a<s> a", false), (Ids{2, 3, 2}));
  EXPECT_EQ(parse(file)->encode("<s>a", false), (Ids{3, 1}));
  spec["prepend_scheme"] = "always";
  EXPECT_EQ(parse(file)->encode("a<s>a", false), (Ids{2, 3, 2}));
  spec["prepend_scheme"] = "never";
  EXPECT_EQ(parse(file)->encode("a  a", false), (Ids{1, 0, 2}));
  spec.erase("prepend_scheme");
  spec["add_prefix_space"] = false;
  EXPECT_EQ(parse(file)->encode("a", false), Ids{1});
}

TEST(PreTokenizers, SplitBehaviors) {
  // The merges join whatever a split leaves together.
  json file = file_of({"a", "b", "-", "ab", "a-", "-b", "--", "a-b"}, {"a -", "- b", "- -"});
  json& spec = file["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"String", "-"}}}};
  const auto ids = [&](const char* behavior, bool invert, const char* text) {
    spec["behavior"] = behavior;
    spec["invert"] = invert;
    return parse(file)->encode(text, false);
  };
  EXPECT_EQ(ids("Isolated", false, "a--b"), (Ids{0, 2, 2, 1}));
  EXPECT_EQ(ids("Removed", false, "a--b"), (Ids{0, 1}));
  EXPECT_EQ(ids("MergedWithPrevious", false, "a--b"), (Ids{4, 2, 1}));
  EXPECT_EQ(ids("MergedWithNext", false, "a--b"), (Ids{0, 2, 5}));
  EXPECT_EQ(ids("Contiguous", false, "a--b"), (Ids{0, 6, 1}));
  EXPECT_EQ(ids("Removed", true, "a--b"), (Ids{2, 2}));
}

TEST(AddedTokens, LeftmostLongestAndFlags) {
  json file = file_of({"a", "b", " "});
  file["added_tokens"] = {added("x"),
                          added("xyz"),
                          added("yzw"),
                          added("l", {{"lstrip", true}}),
                          added("r", {{"rstrip", true}}),
                          added("word", {{"single_word", true}}),
                          added("a")};
  const auto tokenizer = parse(file);
  EXPECT_EQ(tokenizer->vocab_size(), 9);  // "a" keeps the model's id
  EXPECT_EQ(tokenizer->encode("xyzw", false), Ids{4});
  EXPECT_EQ(tokenizer->encode("xyw", false), Ids{3});
  EXPECT_EQ(tokenizer->encode("a  l  b", false), (Ids{0, 6, 2, 2, 1}));
  EXPECT_EQ(tokenizer->encode("a  r  b", false), (Ids{0, 2, 2, 7, 1}));
  EXPECT_EQ(tokenizer->encode("word word-word", false), (Ids{8, 2, 8, 8}));
  EXPECT_EQ(tokenizer->encode("bword", false), Ids{1});
  EXPECT_EQ(tokenizer->token_id("xyz"), 4);
  EXPECT_EQ(tokenizer->token(4), "xyz");
  EXPECT_EQ(tokenizer->token(9), std::nullopt);
}

TEST(AddedTokens, NormalizedOnesAreMatchedInNormalizedText) {
  json file = file_of({"a", "b"});
  file["normalizer"] = {{"type", "Lowercase"}};
  file["added_tokens"] = {added("RAW"), added("Soft", {{"normalized", true}}),
                          added("<e>", {{"special", true}})};
  const auto tokenizer = parse(file);
  EXPECT_EQ(tokenizer->encode("ASOFTb", false), (Ids{0, 3, 1}));
  EXPECT_EQ(tokenizer->encode("aRAWraw", false), (Ids{0, 2, 0}));  // "rw" has no token
  EXPECT_EQ(tokenizer->encode("a<E>", false), Ids{0});
  EXPECT_EQ(tokenizer->decode(Ids{0, 4, 1}), "a <e> b");  // no decoder: spaces between tokens
  EXPECT_EQ(tokenizer->decode(Ids{0, 4, 1}, true), "a b");
}

TEST(PostProcessors, TemplateInSequence) {
  json file = file_of({"a", "<s>", "</s>"});
  file["added_tokens"] = {added("<s>", {{"special", true}}), added("</s>", {{"special", true}})};
  const json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", true}};
  const json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const json begin = {{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}};
  json processor = {{"type", "TemplateProcessing"},
                    {"single", {begin, text, begin}},
                    {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {1, 2}}}}}}};
  file["post_processor"] = {{"type", "Sequence"}, {"processors", {byte_level, processor}}};
  const auto tokenizer = parse(file);
  EXPECT_EQ(tokenizer->encode("a", true), (Ids{1, 2, 0, 1, 2}));
  EXPECT_EQ(tokenizer->encode("a", false), Ids{0});
  EXPECT_EQ(tokenizer->encode("<s>a", false), (Ids{1, 0}));
  EXPECT_EQ(tokenizer->eos_id(), 2);
}

TEST(Decoders, BytesOfARowStandOrFallTogether) {
  json file = file_of({"a", "<0xC3>", "<0xA9>", "<0x41>", "▁b"});
  const json replace = {{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}};
  const json strip = {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}};
  file["decoder"] = {
      {"type", "Sequence"},
      {"decoders", {replace, {{"type", "ByteFallback"}}, {{"type", "Fuse"}}, strip}}};
  const auto tokenizer = parse(file);
  EXPECT_EQ(tokenizer->decode(Ids{4, 1, 2, 0, 4}), "béa b");
  EXPECT_EQ(tokenizer->decode(Ids{3, 1, 0}), "\uFFFD\uFFFDa");  // A is lost with the broken byte
  StreamDecoder stream(*tokenizer);
  EXPECT_EQ(stream.push(4), "b");  // the space that Strip takes
  EXPECT_EQ(stream.push(1), "");
  EXPECT_EQ(stream.push(2), "");
  EXPECT_EQ(stream.push(4), "é b");
  EXPECT_EQ(stream.finish(), "");
  for (const Ids& ids : {Ids{}, Ids{1}, Ids{4, 4, 3, 3, 1}, Ids{99, -1, 0}})
    EXPECT_EQ(streamed(*tokenizer, ids), tokenizer->decode(ids));
}

TEST(Decoders, ByteLevelHoldsCutCharacters) {
  json file = file_of({"Ã", "©", "Ġ", "a b"});
  file["decoder"] = {{"type", "ByteLevel"}};
  const auto tokenizer = parse(file);
  StreamDecoder stream(*tokenizer);
  EXPECT_EQ(stream.push(0), "");
  EXPECT_EQ(stream.push(1), "é");
  EXPECT_EQ(stream.push(0), "");
  EXPECT_EQ(stream.push(2), "\uFFFD ");
  EXPECT_EQ(stream.push(3), "a b");  // not of the alphabet: as it stands
  EXPECT_EQ(stream.push(0), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
}

TEST(Encode, MalformedUtf8IsReadAsReplacementCharacters) {
  const auto tokenizer = parse(file_of({"a", "\uFFFD"}));
  EXPECT_EQ(tokenizer->encode("a\xFF\xE2\x82"
                              "a\xF0\x9F\x98",
                              false),
            (Ids{0, 1, 1, 0, 1}));
  EXPECT_EQ(tokenizer->encode("\xED\xA0\x80", false),
            (Ids{1, 1, 1}));  // a surrogate: no prefix of any
}

}  // namespace
}  // namespace krait
