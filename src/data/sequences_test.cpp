#include "krait/data/sequences.h"

#include <gtest/gtest.h>

#include <cmath>

#include "krait/base/file.h"
#include "krait/io/npy.h"
#include "krait/testing/files.h"

namespace krait {
namespace {

using testing::error_of;
using testing::TempDir;

class Sequences : public ::testing::Test {
 protected:
  SequenceExamples read(const std::string& lines, const SequenceFormat& format,
                        std::vector<std::string> names = {}) {
    write_file(dir_ / "data.jsonl", lines);
    return SequenceExamples({(dir_ / "data.jsonl").string()}, format, {}, std::move(names));
  }
  TempDir dir_;
};

constexpr SequenceFormat kClasses = {.vocab_size = 256};
constexpr SequenceFormat kNumbers = {.vocab_size = 256, .numbers = true};

TEST_F(Sequences, TextsAndIdsWithClasses) {
  const SequenceExamples s =
      read("{\"text\": \"hi\", \"label\": \"good\"}\n{\"tokens\": [7, 8, 9], \"label\": \"bad\"}\n",
           kClasses);
  EXPECT_EQ(s.names(), (std::vector<std::string>{"bad", "good"}));
  EXPECT_EQ(s.read(0).tokens, (std::vector<int32_t>{'h', 'i'}));
  EXPECT_EQ(s.read(0).label, 1);
  EXPECT_EQ(s.description(), "2 sequences of 2 classes");
  const Batch b = read_batch(s, std::vector<int64_t>{1, 0});
  EXPECT_EQ(b.tokens, (std::vector<int32_t>{7, 8, 9, 'h', 'i'}));
  EXPECT_EQ(b.begin, (std::vector<int64_t>{0, 3, 5}));
  EXPECT_EQ(b.feed().tokens.shape, (Shape{1, 5}));
  EXPECT_EQ(b.feed().targets.shape, (Shape{2}));
  EXPECT_EQ(b.targets, (std::vector<int32_t>{0, 1}));
}

TEST_F(Sequences, WhoseAnswersAreToBeFoundOut) {
  SequenceFormat format = kNumbers;
  format.answers = false;
  const SequenceExamples s =
      read("{\"text\": \"hi\"}\n\n{\"text\": \"x\", \"target\": \"?\"}\n", format);
  ASSERT_EQ(s.size(), 2);
  EXPECT_EQ(s.read(1).tokens, (std::vector<int32_t>{'x'}));
  EXPECT_TRUE(s.read(1).numbers.empty());
  EXPECT_TRUE(s.name(1).ends_with("data.jsonl:3")) << s.name(1);
  s.require_kind(0, 9);
  EXPECT_THROW(s.require_kind(2, 9), Error);
}

TEST_F(Sequences, LongOnesAreCutAndPlacesStandBehind) {
  SequenceFormat format = kClasses;
  format.longest = 2;
  format.place = true;
  const SequenceExamples s =
      read("{\"text\": \"abc\", \"label\": 0}\n{\"text\": \"x\", \"label\": 2}\n", format);
  EXPECT_EQ(s.read(0).tokens, (std::vector<int32_t>{'a', 'b', 0}));
  EXPECT_EQ(s.read(1).tokens, (std::vector<int32_t>{'x', 0}));
  EXPECT_EQ(s.cut(), 1);
  EXPECT_EQ(s.outputs(), 3);
}

TEST_F(Sequences, SeriesWithNumbers) {
  std::vector<float> stored = {5, 6, 7, 8};
  write_npy(dir_ / "x.npy", Tensor(stored.data(), DType::f32, {2, 2}));
  const SequenceExamples s = read(
      "{\"values\": [[1, 2], [3, 4], [0, 1e1]], \"target\": [1, -2.5]}\n"
      "{\"values\": \"x.npy\", \"target\": [0, 3]}\n",
      kNumbers);
  EXPECT_EQ(s.inputs(), 2);
  EXPECT_EQ(s.outputs(), 2);
  const Batch b = read_batch(s, std::vector<int64_t>{0, 1});
  EXPECT_EQ(b.values, (std::vector<float>{1, 2, 3, 4, 0, 10, 5, 6, 7, 8}));
  EXPECT_EQ(b.feed().values.shape, (Shape{1, 5, 2}));
  EXPECT_EQ(b.feed().targets.shape, (Shape{2, 2}));
  EXPECT_EQ(b.numbers, (std::vector<float>{1, -2.5, 0, 3}));
  EXPECT_EQ(b.n_targets, 4);
  EXPECT_EQ(b.begin, (std::vector<int64_t>{0, 3, 5}));
  // A list of numbers is a series of vectors of one.
  EXPECT_EQ(read("{\"values\": [1, 2, 3], \"target\": 1}", kNumbers).read(0).shape, (Shape{3, 1}));
}

// Eight bits, two channels: means -1, 0, 0.5, in vectors of two.
TEST_F(Sequences, SoundsAreCutIntoVectorsOfTheModel) {
  const std::string samples = {'\0', '\0', '\x80', '\x80', '\xe0', '\xa0'};
  write_file(dir_ / "x.wav",
             std::string("RIFF....WAVEfmt \x10\0\0\0\1\0\2\0\x40\x1f\0\0\0\0\0\0\2\0\x08\0", 36) +
                 std::string("data\6\0\0\0", 8) + samples);
  const std::string line = "{\"values\": \"x.wav\", \"label\": 1}";
  SequenceFormat format = kClasses;
  EXPECT_EQ(read(line, format).read(0).shape, (Shape{3, 1}));
  format.inputs = 2;
  const Example e = read(line, format).read(0);
  EXPECT_EQ(e.shape, (Shape{2, 2}));
  EXPECT_EQ(e.values, (std::vector<float>{-1, 0, 0.5f, 0}));
}

TEST_F(Sequences, AFileOfAnotherKindIsNamedWithThoseThatAreRead) {
  const std::string message =
      error_of([&] { read("{\"values\": \"x.mp3\", \"label\": 1}", kClasses); });
  EXPECT_NE(message.find("data.jsonl:1"), std::string::npos) << message;
  EXPECT_NE(message.find(".npy, .wav, .flac or .ogg"), std::string::npos) << message;
}

TEST_F(Sequences, SeriesWithNumbersThatAreNotFiniteAreRefused) {
  std::vector<float> stored = {5, 6, INFINITY, 8};
  write_npy(dir_ / "x.npy", Tensor(stored.data(), DType::f32, {2, 2}));
  const std::string message =
      error_of([&] { read("{\"values\": \"x.npy\", \"target\": 1}", kNumbers); });
  EXPECT_TRUE(message.ends_with("x.npy: expected finite numbers, got inf at place 2 of (2, 2)"))
      << message;
}

TEST_F(Sequences, WrongLinesAreRefusedByTheirNumber) {
  const std::string good = "{\"text\": \"a\", \"label\": 0}\n";
  for (const char* wrong :
       {"{\"text\": \"a\"}", "{\"label\": 0}", "{\"text\": \"\", \"label\": 0}",
        "{\"tokens\": [256], \"label\": 0}", "{\"tokens\": [-1], \"label\": 0}",
        "{\"tokens\": [0.5], \"label\": 0}", "{\"tokens\": 3, \"label\": 0}",
        "{\"values\": [1], \"label\": 0}", "{\"text\": \"a\", \"label\": [0]}", "nothing"})
    EXPECT_NE(error_of([&] { read(good + wrong, kClasses); }).find("data.jsonl:2"),
              std::string::npos)
        << wrong;
  const std::string series = "{\"values\": [[1, 2]], \"target\": 0}\n";
  for (const char* wrong :
       {"{\"values\": [[1, 2], [3]], \"target\": 0}", "{\"values\": [[1]], \"target\": 0}",
        "{\"values\": [[1, 1e300]], \"target\": 0}", "{\"values\": [[1, \"x\"]], \"target\": 0}",
        "{\"values\": [], \"target\": 0}", "{\"values\": [[1, 2]], \"target\": [0, 1]}",
        "{\"values\": [[1, 2]], \"target\": []}", "{\"values\": [[1, 2]]}",
        "{\"text\": \"a\", \"target\": 0}", "{\"values\": {}, \"target\": 0}"})
    EXPECT_NE(error_of([&] { read(series + wrong, kNumbers); }).find("data.jsonl:2"),
              std::string::npos)
        << wrong;
}

TEST_F(Sequences, AreComparedWithTheModel) {
  const SequenceExamples s = read("{\"text\": \"a\", \"label\": 2}\n", kClasses);
  s.require_kind(0, 3);
  s.require_kind(0, 5);
  EXPECT_THROW(s.require_kind(0, 2), Error);
  EXPECT_THROW(s.require_kind(4, 3), Error);
  // A number may be beyond the names that a model has.
  const SequenceExamples beyond = read("{\"text\": \"a\", \"label\": 5}\n", kClasses, {"x", "y"});
  EXPECT_THROW(beyond.require_kind(0, 2), Error);
  EXPECT_THROW(read("", kClasses), Error);
}

}  // namespace
}  // namespace krait
