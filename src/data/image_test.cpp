#include "krait/data/image.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "krait/base/error.h"
#include "krait/base/rng.h"

namespace krait {
namespace {

Pixels noise(int64_t H, int64_t W) {
  Pixels p{H, W, {}};
  for (int64_t i = 0; i < 3 * H * W; ++i)
    p.rgb.push_back(static_cast<uint8_t>(Philox{5, 9}.words(static_cast<uint64_t>(i))[0] & 255));
  return p;
}

// Keys's kernel with a = -1/2, written as two cases of its polynomial.
double keys(double x) {
  x = std::abs(x);
  if (x <= 1) return 1.5 * x * x * x - 2.5 * x * x + 1;
  if (x < 2) return -0.5 * x * x * x + 2.5 * x * x - 4 * x + 2;
  return 0;
}

// One value of a line resized in float64: the sum over all inputs, those out of reach weigh nothing.
double at(const std::vector<double>& line, int64_t size, int64_t i) {
  const double scale = static_cast<double>(line.size()) / static_cast<double>(size);
  const double wide = std::max(scale, 1.0);
  const double centre = (static_cast<double>(i) + 0.5) * scale - 0.5;
  double sum = 0, weights = 0;
  for (size_t k = 0; k < line.size(); ++k) {
    const double w = keys((static_cast<double>(k) - centre) / wide);
    sum += w * line[k];
    weights += w;
  }
  return sum / weights;
}

double byte(double x) { return std::clamp(std::floor(x + 0.5), 0.0, 255.0); }

std::vector<double> reference(const Pixels& from, int64_t H, int64_t W) {
  std::vector<double> rows, result;
  for (int64_t y = 0; y < from.H; ++y)
    for (int64_t x = 0; x < W; ++x)
      for (int64_t k = 0; k < 3; ++k) {
        std::vector<double> line;
        for (int64_t i = 0; i < from.W; ++i)
          line.push_back(from.rgb[static_cast<size_t>((y * from.W + i) * 3 + k)]);
        rows.push_back(byte(at(line, W, x)));
      }
  for (int64_t y = 0; y < H; ++y)
    for (int64_t x = 0; x < 3 * W; ++x) {
      std::vector<double> line;
      for (int64_t i = 0; i < from.H; ++i) line.push_back(rows[static_cast<size_t>(i * 3 * W + x)]);
      result.push_back(byte(at(line, H, y)));
    }
  return result;
}

// A sum that lies on a half, to the last bits of float64, may be rounded to either side.
TEST(Resize, IsTheReferenceInFloat64) {
  const Pixels from = noise(23, 31);
  for (const auto& [H, W] : {std::pair<int64_t, int64_t>{23, 31}, {7, 9}, {40, 64}, {11, 61}}) {
    const Pixels to = resize(from, H, W, {0, 0, H, W});
    const std::vector<double> expected = reference(from, H, W);
    ASSERT_EQ(to.rgb.size(), expected.size());
    int64_t differ = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(to.rgb[i], expected[i], 1) << H << " x " << W << " at " << i;
      differ += to.rgb[i] != expected[i];
    }
    EXPECT_LE(differ, 2) << H << " x " << W;
  }
}

TEST(Resize, OfTheSameSizeChangesNothing) {
  const Pixels from = noise(8, 5);
  EXPECT_EQ(resize(from, 8, 5, {0, 0, 8, 5}).rgb, from.rgb);
}

TEST(Resize, AWindowIsCutOutOfTheWhole) {
  const Pixels from = noise(23, 31), whole = resize(from, 15, 44, {0, 0, 15, 44});
  const Window o{4, 13, 6, 20};
  const Pixels cut = resize(from, 15, 44, o);
  for (int64_t y = 0; y < o.h; ++y)
    for (int64_t i = 0; i < 3 * o.w; ++i)
      EXPECT_EQ(cut.rgb[static_cast<size_t>(y * 3 * o.w + i)],
                whole.rgb[static_cast<size_t>(((y + o.top) * 44 + o.left) * 3 + i)]);
  EXPECT_THROW(resize(from, 15, 44, {10, 0, 6, 20}), Error);
}

// A white picture of any shape is (1 - mean) / deviation everywhere, channel by channel.
TEST(EvaluationImage, IsNormalisedWithTheNumbersOfImageNet) {
  for (const auto& [H, W] : {std::pair<int64_t, int64_t>{40, 40}, {33, 90}, {300, 17}}) {
    const Pixels white{H, W, std::vector<uint8_t>(static_cast<size_t>(3 * H * W), 255)};
    const std::vector<float> v = evaluation_image(white, 28);
    ASSERT_EQ(v.size(), 3u * 28 * 28);
    for (size_t i = 0; i < 28 * 28; ++i) {
      EXPECT_NEAR(v[i], 2.2489083, 1e-6);
      EXPECT_NEAR(v[28 * 28 + i], 2.4285714, 1e-6);
      EXPECT_NEAR(v[2 * 28 * 28 + i], 2.64, 1e-6);
    }
  }
}

// 224 of 256: a picture whose shorter side is 256 already is only cut. Of 300 columns 76 are left over, 38 on
// each side; of 256 rows 16.
TEST(EvaluationImage, TakesTheMiddle) {
  Pixels p{256, 300, std::vector<uint8_t>(static_cast<size_t>(3 * 256 * 300), 0)};
  const auto mark = [&](int64_t y, int64_t x) {
    p.rgb[static_cast<size_t>((y * 300 + x) * 3)] = 255;
  };
  mark(16, 38);
  mark(239, 261);
  mark(15, 37);
  const std::vector<float> v = evaluation_image(p, 224);
  const float on = (1.0f - 0.485f) / 0.229f, off = (0.0f - 0.485f) / 0.229f;
  EXPECT_NEAR(v[0], on, 1e-6);
  EXPECT_NEAR(v[224 * 224 - 1], on, 1e-6);
  EXPECT_EQ(std::count(v.begin(), v.begin() + 224 * 224, off), 224 * 224 - 2);
}

TEST(RandomWindow, LiesInsideAndHasTheAreaAndTheRatio) {
  std::vector<double> shares;
  int upright = 0;
  for (uint64_t i = 0; i < 400; ++i) {
    const Window o = random_window(90, 120, 0.25, Philox{3, i});
    ASSERT_TRUE(o.top >= 0 && o.left >= 0 && o.top + o.h <= 90 && o.left + o.w <= 120);
    const double ratio = static_cast<double>(o.w) / static_cast<double>(o.h);
    EXPECT_GT(ratio, 0.73);  // half a pixel of either side
    EXPECT_LT(ratio, 1.37);
    shares.push_back(static_cast<double>(o.w * o.h) / (90 * 120));
    upright += o.w < o.h;
  }
  EXPECT_NEAR(*std::min_element(shares.begin(), shares.end()), 0.25, 0.02);
  EXPECT_GT(*std::max_element(shares.begin(), shares.end()), 0.9);
  EXPECT_NEAR(upright, 200, 50);
  // No window of a long line fits: the middle of it.
  const Window line = random_window(3, 100, 1, Philox{3, 1});
  EXPECT_EQ(line.w, 4);
  EXPECT_EQ(line.h, 3);
  EXPECT_EQ(line.left, 48);
}

TEST(TrainingImage, IsACropThatIsResizedAndFlipped) {
  const Pixels picture = noise(40, 50);
  const std::vector<float> plain = evaluation_image(picture, 16);
  EXPECT_EQ(training_image(picture, 16, {}, Philox{1, 1}), plain);
  std::vector<float> flipped = training_image(picture, 16, {1, 1}, Philox{1, 1});
  EXPECT_NE(flipped, plain);
  flip(flipped, 16);
  EXPECT_EQ(flipped, plain);

  // Cut out of the picture: what lies outside of the window does not count.
  const Augmentation crops{0.3, 0};
  const Philox random{7, 2};
  const Window o = random_window(40, 50, 0.3, random);
  ASSERT_LT(o.h * o.w, 40 * 50);
  Pixels other = noise(40, 50);
  for (int64_t y = 0; y < 40; ++y)
    for (int64_t x = 0; x < 50; ++x)
      if (y < o.top || y >= o.top + o.h || x < o.left || x >= o.left + o.w)
        for (int64_t k = 0; k < 3; ++k) other.rgb[static_cast<size_t>((y * 50 + x) * 3 + k)] = 9;
  EXPECT_EQ(training_image(other, 16, crops, random), training_image(picture, 16, crops, random));
  EXPECT_NE(training_image(picture, 16, crops, Philox{7, 3}),
            training_image(picture, 16, crops, random));
  int flips_of_100 = 0;
  for (uint64_t i = 0; i < 100; ++i) flips_of_100 += flips({1, 0.3}, Philox{1, i});
  EXPECT_NEAR(flips_of_100, 30, 15);
}

}  // namespace
}  // namespace krait
