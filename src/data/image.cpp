#include "krait/data/image.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "krait/base/error.h"

namespace krait {

namespace {

constexpr std::array<float, 3> kMean = {0.485f, 0.456f, 0.406f};
constexpr std::array<float, 3> kDeviation = {0.229f, 0.224f, 0.225f};

double cubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

// What makes one pixel of the result: the inputs from `first` on, with these weights.
struct Taps {
  int64_t first = 0;
  std::vector<double> weights;  // their sum is 1
};

// Of the results [begin, end) of a line of n pixels that becomes one of `size`.
std::vector<Taps> taps(int64_t n, int64_t size, int64_t begin, int64_t end) {
  const double scale = static_cast<double>(n) / static_cast<double>(size);
  const double wide = std::max(scale, 1.0), reach = 2 * wide;
  std::vector<Taps> all;
  for (int64_t i = begin; i < end; ++i) {
    const double centre = (static_cast<double>(i) + 0.5) * scale;
    Taps t;
    t.first = std::max<int64_t>(0, static_cast<int64_t>(centre - reach + 0.5));
    const int64_t last = std::min(n, static_cast<int64_t>(centre + reach + 0.5));
    double sum = 0;
    for (int64_t k = t.first; k < last; ++k) {
      t.weights.push_back(cubic((static_cast<double>(k) - centre + 0.5) / wide));
      sum += t.weights.back();
    }
    for (double& w : t.weights) w /= sum;
    all.push_back(std::move(t));
  }
  return all;
}

uint8_t rounded(double x) {
  return static_cast<uint8_t>(std::clamp(std::floor(x + 0.5), 0.0, 255.0));
}

}  // namespace

Pixels resize(const Pixels& from, int64_t H, int64_t W, const Window& o) {
  require(o.top >= 0 && o.left >= 0 && o.h > 0 && o.w > 0 && o.top + o.h <= H && o.left + o.w <= W,
          "a window of {} x {} pixels at ({}, {}) of a picture of {} x {}", o.w, o.h, o.left, o.top,
          W, H);
  const std::vector<Taps> across = taps(from.W, W, o.left, o.left + o.w),
                          down = taps(from.H, H, o.top, o.top + o.h);
  // Only the rows that the second pass reads.
  const int64_t first = down.front().first,
                last = down.back().first + static_cast<int64_t>(down.back().weights.size());
  std::vector<uint8_t> rows(static_cast<size_t>((last - first) * o.w * 3));
  for (int64_t y = first; y < last; ++y)
    for (int64_t x = 0; x < o.w; ++x) {
      const Taps& t = across[static_cast<size_t>(x)];
      const uint8_t* in = &from.rgb[static_cast<size_t>((y * from.W + t.first) * 3)];
      double sum[3] = {};
      for (const double w : t.weights)
        for (double& s : sum) s += w * *in++;
      for (int64_t k = 0; k < 3; ++k)
        rows[static_cast<size_t>(((y - first) * o.w + x) * 3 + k)] = rounded(sum[k]);
    }
  Pixels to{o.h, o.w, std::vector<uint8_t>(static_cast<size_t>(o.h * o.w * 3))};
  std::vector<double> sum(static_cast<size_t>(o.w * 3));
  for (int64_t y = 0; y < o.h; ++y) {
    const Taps& t = down[static_cast<size_t>(y)];
    std::fill(sum.begin(), sum.end(), 0.0);
    const uint8_t* in = &rows[static_cast<size_t>((t.first - first) * o.w * 3)];
    for (const double w : t.weights)
      for (double& s : sum) s += w * *in++;
    std::transform(sum.begin(), sum.end(), &to.rgb[static_cast<size_t>(y * o.w * 3)], rounded);
  }
  return to;
}

static std::vector<float> normalised(const Pixels& cut) {
  std::vector<float> values(cut.rgb.size());
  const size_t n = cut.rgb.size() / 3;
  for (size_t i = 0; i < n; ++i)
    for (size_t k = 0; k < 3; ++k)
      values[k * n + i] =
          (static_cast<float>(cut.rgb[3 * i + k]) / 255.0f - kMean[k]) / kDeviation[k];
  return values;
}

std::vector<float> evaluation_image(const Pixels& picture, int64_t size) {
  const int64_t H = picture.H, W = picture.W, shorter = size * 256 / 224;
  const int64_t tall = H <= W ? shorter : shorter * H / W,
                wide = H <= W ? shorter * W / H : shorter;
  const auto middle = [&](int64_t side) {  // halves go to the even number
    return static_cast<int64_t>(std::nearbyint(static_cast<double>(side - size) / 2));
  };
  return normalised(resize(picture, tall, wide, {middle(tall), middle(wide), size, size}));
}

Window random_window(int64_t H, int64_t W, double least, const Philox& random) {
  constexpr double kNarrow = 3.0 / 4.0, kWide = 4.0 / 3.0;
  constexpr uint64_t kTries = 10, kDraws = 4;
  const auto tall = static_cast<double>(H), wide = static_cast<double>(W);
  for (uint64_t draw = 0; draw < kTries * kDraws; draw += kDraws) {
    const double area = tall * wide * (least + (1 - least) * random.uniform_double(draw));
    const double ratio = kNarrow * std::pow(kWide / kNarrow, random.uniform_double(draw + 1));
    const auto w = static_cast<int64_t>(std::llround(std::sqrt(area * ratio))),
               h = static_cast<int64_t>(std::llround(std::sqrt(area / ratio)));
    if (w < 1 || h < 1 || w > W || h > H) continue;
    const auto place = [&](uint64_t i, int64_t room) {
      return static_cast<int64_t>(random.uniform_double(i) * static_cast<double>(room + 1));
    };
    return {place(draw + 2, H - h), place(draw + 3, W - w), h, w};
  }
  const int64_t w = std::min(W, std::max<int64_t>(1, std::llround(tall * kWide))),
                h = std::min(H, std::max<int64_t>(1, std::llround(wide / kNarrow)));
  return {(H - h) / 2, (W - w) / 2, h, w};
}

static Pixels cut_out(const Pixels& from, const Window& o) {
  Pixels to{o.h, o.w, {}};
  for (int64_t y = o.top; y < o.top + o.h; ++y) {
    const auto row = from.rgb.begin() + (y * from.W + o.left) * 3;
    to.rgb.insert(to.rgb.end(), row, row + o.w * 3);
  }
  return to;
}

bool flips(const Augmentation& how, const Philox& random) {
  constexpr uint64_t kDraw = 1 << 20;  // behind those of random_window
  return random.uniform_double(kDraw) < how.hflip;
}

void flip(std::vector<float>& values, int64_t size) {
  for (auto row = values.begin(); row != values.end(); row += size) std::reverse(row, row + size);
}

std::vector<float> training_image(const Pixels& picture, int64_t size, const Augmentation& how,
                                  const Philox& random) {
  std::vector<float> values;
  if (how.crop_scale < 1) {
    const Window window = random_window(picture.H, picture.W, how.crop_scale, random);
    values = normalised(resize(cut_out(picture, window), size, size, {0, 0, size, size}));
  } else {
    values = evaluation_image(picture, size);
  }
  if (flips(how, random)) flip(values, size);
  return values;
}

}  // namespace krait
