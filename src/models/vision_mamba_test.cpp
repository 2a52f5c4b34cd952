#include "krait/models/vision_mamba.h"

#include <gtest/gtest.h>

#include "krait/testing/op_test.h"
#include "krait/testing/planned_run.h"

namespace krait::models {
namespace {

// reference/systems.md, section 0
TEST(VisionPresets, HaveThePublishedParameterCounts) {
  const std::pair<const char*, int64_t> published[] = {
      {"vim-tiny", 7148008}, {"vim-small", 25796584}, {"vim-base", 97598440}};
  for (const auto& [name, count] : published)
    EXPECT_EQ(VisionMamba(vision_preset(name)).params().numel(), count) << name;
  EXPECT_EQ(vision_preset("vim-tiny").patches(), 196);
  EXPECT_EQ(vision_preset("vim-tiny").class_at(), 98);
  VisionConfig fine = vision_preset("vim-tiny");
  fine.stride = 8;
  EXPECT_EQ(fine.patches(), 729);
  EXPECT_THROW(vision_preset("vim-huge"), Error);
}

VisionConfig small(int64_t stride, bool shared = false) {
  VisionConfig c;
  c.shared = shared;
  c.image = 12;
  c.patch = 4;
  c.stride = stride;
  c.classes = 5;
  c.n_layer = 2;
  c.mixer.d_model = 8;
  c.mixer.d_inner = 16;
  c.mixer.dt_rank = 1;
  return c;
}

testing::Values logits_of(const VisionMamba& model, const Tensor& images) {
  testing::Values result;
  const testing::PlannedRun once(model.params().device(), false, [&](Context& c) {
    const Tensor y = model.outputs(c, {.values = images}, {});
    if (!c.planning()) result = testing::to_double(y);
  });
  return result;
}

// The class token hears from both sides: from the first patch and from the last. Images of a batch do not
// hear of each other.
TEST(VisionMamba, SeesTheWholeImageAndNoOther) {
  for (const auto& [stride, shared] :
       {std::pair{int64_t{4}, false}, std::pair{int64_t{2}, false}, std::pair{int64_t{4}, true}}) {
    VisionMamba model(small(stride, shared));
    model.params().allocate(nn::Purpose::inference, DType::f32, false, testing::test_device());
    model.params().initialize(3);
    testing::TestContext t;
    const Tensor images = t.random({2, 3, 12, 12}, DType::f32, 1);
    const testing::Values before = logits_of(model, images);
    ASSERT_EQ(before.size(), 10u);
    for (const int64_t pixel : {0, 143}) {
      const double v = get(images, pixel);
      set(images, pixel, v + 1);
      const testing::Values after = logits_of(model, images);
      set(images, pixel, v);
      double change = 0;
      for (size_t i = 0; i < 5; ++i) change = std::max(change, std::abs(after[i] - before[i]));
      EXPECT_GT(change, 0) << pixel;
      for (size_t i = 5; i < 10; ++i) EXPECT_EQ(after[i], before[i]) << pixel;
    }
  }
}

// The definition in float64, two weights at a time; the row in the middle is the class token's.
TEST(Positions, AreResizedAsAPictureOfTheGrid) {
  const auto keys = [](double x) {
    x = std::abs(x);
    if (x <= 1) return 1.25 * x * x * x - 2.25 * x * x + 1;
    return x < 2 ? -0.75 * (x * x * x - 5 * x * x + 8 * x - 4) : 0.0;
  };
  const int64_t D = 3;
  for (const auto& sizes : {std::pair<int64_t, int64_t>{4, 7}, {7, 4}, {5, 5}, {1, 3}}) {
    const int64_t n = sizes.first, m = sizes.second;
    testing::TestContext t;
    const Tensor from = t.random({1, n * n + 1, D}, DType::f32, 1),
                 to = t.tensor({1, m * m + 1, D}, DType::f32);
    resize_positions(from, to);
    const auto patch = [&](int64_t y, int64_t x, int64_t d) {
      const int64_t i = std::clamp<int64_t>(y, 0, n - 1) * n + std::clamp<int64_t>(x, 0, n - 1);
      return get(from, (i < n * n / 2 ? i : i + 1) * D + d);
    };
    for (int64_t d = 0; d < D; ++d)
      EXPECT_EQ(get(to, m * m / 2 * D + d), get(from, n * n / 2 * D + d));
    for (int64_t i = 0; i < m * m; ++i)
      for (int64_t d = 0; d < D; ++d) {
        const double scale = static_cast<double>(n) / static_cast<double>(m);
        const double y = (static_cast<double>(i / m) + 0.5) * scale - 0.5,
                     x = (static_cast<double>(i % m) + 0.5) * scale - 0.5;
        double sum = 0;
        for (int64_t a = -3; a < n + 3; ++a)
          for (int64_t b = -3; b < n + 3; ++b)
            sum += keys(y - static_cast<double>(a)) * keys(x - static_cast<double>(b)) *
                   patch(a, b, d);
        EXPECT_NEAR(get(to, (i < m * m / 2 ? i : i + 1) * D + d), sum, 1e-6);
      }
  }
}

// Shared: an A of its own is all that the other direction adds, and every parameter learns.
TEST(VisionMamba, DirectionsMayShareTheirParameters) {
  const VisionMamba separate(small(4));
  VisionMamba shared(small(4, true));
  const int64_t E = 16, N = 16, W = 4, R = 1;
  EXPECT_EQ(
      separate.params().numel() - shared.params().numel(),
      2 * (E * W + E + (R + 2 * N) * E + E * R + E + E));  // conv, x_proj, dt_proj, D of two layers
  shared.params().allocate(nn::Purpose::training, DType::f32, false, testing::test_device());
  shared.params().initialize(3);
  testing::TestContext t;
  const Feed feed{
      {}, t.random({2, 3, 12, 12}, DType::f32, 1), t.from({1, 4}, {2}, DType::i32, false)};
  const testing::PlannedRun run(shared.params().device(), true, [&](Context& c) {
    shared.params().forget_gradients();
    shared.objective(c, feed, {}, 1.0f);
    c.tape->backward(c);
  });
  for (const nn::Param& p : shared.params())
    EXPECT_GT(testing::max_abs(testing::to_double(p.var.grad)), 0) << p.name;
}

TEST(VisionMamba, RefusesImagesOfAnotherSize) {
  VisionMamba model(small(4));
  model.params().allocate(nn::Purpose::inference, DType::f32, false, testing::test_device());
  testing::TestContext t;
  EXPECT_THROW(model.outputs(t.c, {.values = t.random({1, 3, 12, 16}, DType::f32, 1)}, {}), Error);
}

}  // namespace
}  // namespace krait::models
