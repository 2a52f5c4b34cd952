#include "krait/data/images.h"

#include <gtest/gtest.h>

#include <cmath>

#include "krait/base/file.h"
#include "krait/io/npy.h"
#include "krait/testing/files.h"

namespace krait {
namespace {

namespace fs = std::filesystem;
using testing::error_of;
using testing::TempDir;

constexpr ImageShape kShape = {3, 4};

// An image that the model reads as it is, all of one value.
void write_image(const fs::path& path, float value) {
  fs::create_directories(path.parent_path());
  std::vector<float> v(3 * 4 * 4, value);
  write_npy(path, Tensor(v.data(), DType::f32, {3, 4, 4}));
}

TEST(ImageExamples, AFolderForEachClass) {
  const TempDir dir;
  write_image(dir / "dog" / "a.npy", 1);
  write_image(dir / "cat" / "deeper" / "c.npy", 2);
  write_image(dir / "cat" / "b.npy", 3);
  write_file(dir / "cat" / "notes.txt", "no image");
  write_file(dir / "readme", "no class");
  const ImageExamples images({dir.path().string()}, kShape, {});
  EXPECT_EQ(images.names(), (std::vector<std::string>{"cat", "dog"}));
  EXPECT_EQ(images.classes(), 2);
  EXPECT_EQ(images.description(), "3 images of 2 classes");
  ASSERT_EQ(images.size(), 3);
  const float values[] = {3, 2, 1};
  for (int64_t i = 0; i < 3; ++i) {
    const Example e = images.read(i);
    EXPECT_EQ(e.label, i == 2 ? 1 : 0);
    EXPECT_EQ(e.values, std::vector<float>(48, values[i]));
  }
  const Batch batch = read_batch(images, std::vector<int64_t>{2, 0});
  EXPECT_EQ(batch.feed().values.shape, (Shape{2, 3, 4, 4}));
  EXPECT_EQ(batch.values.front(), 1);
  EXPECT_EQ(batch.values.back(), 3);
  EXPECT_EQ(batch.targets, (std::vector<int32_t>{1, 0}));
  EXPECT_EQ(batch.n_targets, 2);
  EXPECT_FALSE(batch.packed());
}

TEST(ImageExamples, WhoseClassesAreToBeFoundOut) {
  const TempDir dir;
  write_image(dir / "dog" / "a.npy", 1);
  write_image(dir / "b.npy", 2);
  write_file(dir / "notes.txt", "no image");
  write_file(dir / "list.jsonl", "{\"image\": \"b.npy\"}\n{\"image\": \"b.npy\", \"label\": []}\n");
  const std::string one = (dir / "dog" / "a.npy").string(), list = (dir / "list.jsonl").string();
  const ImageExamples images({dir.path().string(), one, list}, kShape);
  ASSERT_EQ(images.size(), 5);  // b and dog/a of the folder, dog/a, two lines
  const float values[] = {2, 1, 1, 2, 2};
  for (int64_t i = 0; i < 5; ++i) {
    EXPECT_EQ(images.read(i).values.front(), values[i]);
    EXPECT_EQ(images.read(i).label, -1);
  }
  EXPECT_EQ(images.name(2), one);
  const std::string text = (dir / "notes.txt").string();
  EXPECT_NE(error_of([&] { ImageExamples({text}, kShape); }).find("PNG, JPEG or .npy"),
            std::string::npos);
}

TEST(ImageExamples, ClassesOfTheModelKeepTheirNumbers) {
  const TempDir dir;
  write_image(dir / "dog" / "a.npy", 1);
  const std::vector<std::string> source = {dir.path().string()};
  EXPECT_EQ(ImageExamples(source, kShape, {"zebra", "dog"}).read(0).label, 1);
  EXPECT_NE(error_of([&] { ImageExamples(source, kShape, {"cat"}); }).find("no class \"dog\""),
            std::string::npos);
}

TEST(ImageExamples, LinesOfJson) {
  const TempDir dir;
  write_image(dir / "x" / "a.npy", 1);
  write_image(dir / "b.npy", 2);
  const auto read = [&](const std::string& lines) {
    write_file(dir / "list.jsonl", lines);
    return ImageExamples({(dir / "list.jsonl").string()}, kShape, {});
  };
  const ImageExamples images =
      read("{\"image\": \"x/a.npy\", \"label\": 4}\n\n{\"image\": \"b.npy\", \"label\": 0}\n");
  EXPECT_EQ(images.read(0).label, 4);
  EXPECT_EQ(images.read(1).values.front(), 2);
  EXPECT_EQ(images.classes(), 5);
  EXPECT_NE(error_of([&] { images.require_classes(4); }).find("x/a.npy: its class is 4"),
            std::string::npos);
  EXPECT_EQ(read("{\"image\": \"b.npy\", \"label\": \"dog\"}\n").names().front(), "dog");
  for (const char* wrong :
       {"{\"image\": \"b.npy\", \"label\": -1}", "{\"image\": \"b.npy\"}", "{\"label\": 1}",
        "{\"image\": 3, \"label\": 1}", "[]", "{\"image\": \"b.npy\", \"label\": 1.5}",
        "{\"image\": \"b.npy\", \"label\": \"\"}"})
    EXPECT_NE(error_of([&] { read(wrong); }).find("list.jsonl:1"), std::string::npos) << wrong;
  const std::string mixed =
      "{\"image\": \"b.npy\", \"label\": 1}\n{\"image\": \"b.npy\", \"label\": \"dog\"}";
  EXPECT_NE(error_of([&] { read(mixed); }).find("others have names"), std::string::npos);
}

TEST(ImageExamples, PixelsAreResizedAndOtherArraysRefused) {
  const TempDir dir;
  std::vector<uint8_t> white(9 * 7 * 3, 255);
  fs::create_directories(dir / "white");
  const auto write = [&](const Tensor& t) { write_npy(dir / "white" / "a.npy", t); };
  write(Tensor(white.data(), DType::u8, {9, 7, 3}));
  const ImageExamples images({dir.path().string()}, kShape, {});
  EXPECT_NEAR(images.read(0).values.front(), (1 - 0.485) / 0.229, 1e-6);
  write(Tensor(white.data(), DType::u8, {9, 21}));
  EXPECT_NE(error_of([&] { images.read(0); }).find("expected pixels as uint8 (H, W, 3)"),
            std::string::npos);
  write_image(dir / "white" / "a.npy", NAN);
  EXPECT_NE(error_of([&] { images.read(0); }).find("a.npy: expected finite numbers, got nan"),
            std::string::npos);
  write_file(dir / "white" / "a.npy", "no array");
  EXPECT_NE(error_of([&] { images.read(0); }).find("a.npy"), std::string::npos);
}

TEST(ImageExamples, SourcesWithoutImagesAreRefused) {
  const TempDir dir;
  fs::create_directories(dir / "empty");
  for (const std::string& source : {dir.path().string(), (dir / "not-there.txt").string()})
    EXPECT_NE(error_of([&] { ImageExamples({source}, kShape, {}); }).find("expected"),
              std::string::npos);
}

// Twice through the data, each time every example once, in orders of their own.
TEST(ExampleBatcher, ReadsEachExampleOnceAnEpoch) {
  const TempDir dir;
  for (int i = 0; i < 6; ++i)
    write_image(dir / "c" / (std::to_string(i) + ".npy"), static_cast<float>(i));
  const ImageExamples images({dir.path().string()}, kShape, {});
  ExampleBatcher batcher(images, 2, Order::shuffle, 3), again(images, 2, Order::shuffle, 3);
  std::vector<std::vector<float>> epochs(2);
  for (int64_t m = 0; m < 6; ++m) {
    const Batch batch = batcher.at(m);
    for (int64_t b = 0; b < 2; ++b)
      epochs[static_cast<size_t>(m / 3)].push_back(batch.values[static_cast<size_t>(b * 48)]);
  }
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_EQ(again.at(4).values[0], epochs[1][2]);  // a function of its number alone
  for (auto& e : epochs) {
    std::sort(e.begin(), e.end());
    EXPECT_EQ(e, (std::vector<float>{0, 1, 2, 3, 4, 5}));
  }
}

// What training changes at random follows from the seed and the place: another pass over the data sees other crops, a
// run that goes on sees the same. Evaluation sees none.
TEST(ExampleBatcher, ChangesImagesByPlaceAndSeed) {
  const TempDir dir;
  std::vector<uint8_t> picture(20 * 20 * 3);
  for (size_t i = 0; i < picture.size(); ++i) picture[i] = static_cast<uint8_t>(i * 7 % 251);
  fs::create_directories(dir / "c");
  write_npy(dir / "c" / "a.npy", Tensor(picture.data(), DType::u8, {20, 20, 3}));
  const std::vector<std::string> source = {dir.path().string()};
  const ImageExamples images(source, kShape, {}, {0.2, 0.5}), plain(source, kShape, {});
  EXPECT_EQ(images.read(0).values, plain.read(0).values);
  EXPECT_EQ(images.description(),
            "1 images of 1 classes, crops of 0.2 of the area or more, 0.5 of them flipped");
  ExampleBatcher batcher(images, 1, Order::sequential, 3), again(images, 1, Order::sequential, 3),
      other(images, 1, Order::sequential, 4);
  const std::vector<float> first = batcher.at(0).values;
  EXPECT_NE(first, batcher.at(1).values);
  EXPECT_NE(first, other.at(0).values);
  EXPECT_EQ(again.at(1).values, batcher.at(1).values);

  write_image(dir / "c" / "a.npy", 1);
  EXPECT_NE(error_of([&] { images.read_for_training(0, {}); }).find("--crop-scale needs pixels"),
            std::string::npos);
  std::vector<float> rising(48);
  for (size_t i = 0; i < 48; ++i) rising[i] = static_cast<float>(i);
  write_npy(dir / "c" / "a.npy", Tensor(rising.data(), DType::f32, {3, 4, 4}));
  const ImageExamples flipped(source, kShape, {}, {1, 1});
  EXPECT_EQ(flipped.read_for_training(0, {}).values[0], 3);
  EXPECT_EQ(flipped.read(0).values[0], 0);
}

}  // namespace
}  // namespace krait
