#include "krait/data/tokens.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "krait/data/text.h"
#include "krait/io/npy.h"
#include "krait/testing/errors.h"

namespace krait {
namespace {

namespace fs = std::filesystem;

class Sources : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() /
              fmt::format("krait-tokens-{}",
                          ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string write(const std::string& name, std::string_view text) {
    const fs::path path = folder_ / name;
    std::ofstream(path, std::ios::binary) << text;
    return path.string();
  }
  static std::string bytes(const TokenStream& s) {
    std::vector<int32_t> ids(static_cast<size_t>(s.size()));
    s.read(0, s.size(), ids.data());
    return std::string(ids.begin(), ids.end());
  }
  static std::string message(const std::vector<std::string>& sources, int64_t vocab = 256) {
    return testing::error_of([&] { read_tokens(sources, {}, vocab); });
  }

  fs::path folder_;
};

using Positions = std::vector<int64_t>;

TEST_F(Sources, EachFileIsADocument) {
  const TokenStream s = read_tokens({write("b.txt", "hello"), write("a.txt", "you")}, {}, 256);
  EXPECT_EQ(bytes(s), "helloyou");
  EXPECT_EQ(s.starts(), (Positions{0, 5}));
  EXPECT_EQ(s.targets(), 6);
}

TEST_F(Sources, JsonLinesAreDocumentsAndEmptyOnesLeaveNoTrace) {
  const std::string f = write("a.jsonl",
                              "{\"text\": \"ab\"}\n\n{\"text\": \"\", \"id\": 3}\n"
                              "{\"id\": 4, \"text\": \"c\\u00e9\"}");
  const TokenStream s = read_tokens({f}, {}, 256);
  EXPECT_EQ(s.starts(), (Positions{0, 2}));
  EXPECT_EQ(s.size(), 5);
}

TEST_F(Sources, AFolderIsReadInNameOrderWithoutBinaryAndHiddenFiles) {
  write("2.txt", "second");
  write("1.txt", "first");
  write("3.jsonl", "{\"text\": \"x\"}\n{\"text\": \"y\"}\n");
  write("4.bin", std::string_view("a\0b", 3));
  write(".hidden", "no");
  std::filesystem::create_symlink("round", folder_ / "round");  // a link that leads nowhere
  const TokenStream s = read_tokens({folder_.string()}, {}, 256);
  EXPECT_EQ(bytes(s), "firstsecondxy");
  EXPECT_EQ(s.starts(), (Positions{0, 5, 11, 12}));
}

TEST_F(Sources, TheChecksumIsThatOfTokensAndBorders) {
  const auto sum = [&](const std::string& text) {
    return read_tokens({write("a.jsonl", text)}, {}, 256).checksum();
  };
  const uint64_t one = sum("{\"text\": \"abcd\"}");
  EXPECT_EQ(sum("{\"text\":   \"abcd\", \"id\": 1}"), one);
  EXPECT_NE(sum("{\"text\": \"abdc\"}"), one);
  EXPECT_NE(sum("{\"text\": \"ab\"}\n{\"text\": \"cd\"}"), one);
}

TEST_F(Sources, EachRowOfANpyIsADocument) {
  std::vector<int64_t> ids = {1, 2, 3, 4, 5, 299};
  write_npy(folder_ / "a.npy", Tensor(ids.data(), DType::i64, {2, 3}));
  const TokenStream s = read_tokens({(folder_ / "a.npy").string()}, {}, 300);
  std::vector<int32_t> got(6);
  s.read(0, 6, got.data());
  EXPECT_EQ(got, (std::vector<int32_t>{1, 2, 3, 4, 5, 299}));
  EXPECT_EQ(s.starts(), (Positions{0, 3}));  // each row a document
}

TEST_F(Sources, IdsOutsideTheVocabularyAreNamedByFileAndPosition) {
  std::vector<int32_t> ids(70000, 1);
  ids[69999] = 300;
  const std::string path = (folder_ / "a.npy").string();
  write_npy(path, Tensor(ids.data(), DType::i32, {70000}));
  EXPECT_EQ(message({path}, 300), path + ": token 69999: expected an id from 0 to 299, got 300");
  std::vector<int64_t> wide = {7, int64_t{1} << 32};
  write_npy(path, Tensor(wide.data(), DType::i64, {2}));
  EXPECT_EQ(message({path}, 300), path + ": token 1: 4294967296 is no token id");
  const float f[] = {1.0f};
  write_npy(path, Tensor(const_cast<float*>(f), DType::f32, {1}));
  EXPECT_NE(message({path}).find("expected token ids as int32 or int64, got float32"),
            std::string::npos);
}

TEST_F(Sources, MalformedTextIsNamedByFileAndLine) {
  const std::string bad = write("bad.txt", "one\ntwo\nthr\xff\x65");
  EXPECT_EQ(message({bad}), bad + ":3: expected UTF-8 text, got the byte 0xff at offset 11");
  const std::string packed = write("text.gz", "\x1f\x8b\x08 ...");
  EXPECT_EQ(message({packed}), packed + ": expected text, got a gzip file: unpack it first");
  const std::string json = write("bad.jsonl", "{\"text\": \"a\"}\n{\"text\": 3}\n");
  EXPECT_EQ(message({json}).rfind(json + ":2", 0), 0u) << message({json});
  const std::string cut = write("cut.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b");
  EXPECT_EQ(message({cut}).rfind(cut + ":2", 0), 0u) << message({cut});
  EXPECT_NE(message({write("empty.txt", "")}).find("no tokens in"), std::string::npos);
  EXPECT_NE(message({(folder_ / "missing.txt").string()}).find("missing.txt"), std::string::npos);
}

TEST(Utf8, OverlongSurrogateAndTruncatedFormsAreRefused) {
  for (const char* good :
       {"", "a", "\u00e9", "\u20ac", "\xed\x9f\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"})
    EXPECT_NO_THROW(check_utf8(good, "t")) << good;
  for (const char* bad :
       {"\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xed\xa0\x80", "\xf0\x80\x80\x80",
        "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xe2\x82", "\xc3"})
    EXPECT_THROW(check_utf8(bad, "t"), Error) << bad;
}

}  // namespace
}  // namespace krait
