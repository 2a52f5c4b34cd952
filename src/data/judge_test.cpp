#include "krait/data/judge.h"

#include <gtest/gtest.h>

#include <cmath>

#include "krait/tensor/memory.h"

namespace krait {
namespace {

// Says what the example's values are, as the head of a model would.
class Echo : public models::Model {
 public:
  int64_t n_layer() const override { return 0; }
  Tensor outputs(Context& c, const models::Feed& feed, const models::Pass&) const override {
    Tensor y = c.alloc({feed.values.size(0), feed.values.size(3)}, DType::f32);
    if (!c.planning()) copy(c, feed.values.reshape(y.shape), y);
    return y;
  }
  models::Feed sketch(int64_t, int64_t) const override { return {}; }
};

class Given : public Examples {
 public:
  explicit Given(std::vector<Example> all) : all_(std::move(all)) {}
  int64_t size() const override { return static_cast<int64_t>(all_.size()); }
  Example read(int64_t i) const override { return all_[static_cast<size_t>(i)]; }
  std::string name(int64_t i) const override { return std::to_string(i); }
  std::string description() const override { return "what is given"; }
  uint64_t checksum() const override { return 0; }

 private:
  std::vector<Example> all_;
};

Example example(std::vector<float> outputs, int32_t label, std::vector<float> numbers = {}) {
  const auto n = static_cast<int64_t>(outputs.size());
  return {{}, std::move(outputs), {1, 1, n}, label, std::move(numbers)};
}

TEST(Judge, CountsTheLargestAndTheFiveLargest) {
  const Given examples({
      example({9, 1, 2, 3, 4, 5, 6}, 0),  // the largest
      example({1, 9, 2, 3, 4, 5, 6}, 3),  // the fifth: behind 9, 6, 5, 4
      example({1, 9, 2, 3, 4, 5, 6}, 2),  // the sixth
      example({1, 1, 0, 0, 0, 0, 0}, 1),  // not alone at the top
  });
  for (const int64_t B : {1, 3, 4}) {
    Arena arena(0);
    const Judgement j = *judge(Echo(), examples, DType::f32, B, arena);
    EXPECT_EQ(j.examples, 4);
    EXPECT_EQ(j.accuracy, 0.25);
    EXPECT_EQ(j.top5_accuracy, 0.75);
    EXPECT_FALSE(j.numbers);
    double loss = 0;
    for (int64_t i = 0; i < 4; ++i) {
      const Example e = examples.read(i);
      double sum = 0;
      for (const float v : e.values) sum += std::exp(static_cast<double>(v));
      loss += (std::log(sum) - static_cast<double>(e.values[static_cast<size_t>(e.label)])) / 4;
    }
    EXPECT_NEAR(j.loss, loss, 1e-6);
  }
}

TEST(Judge, MeasuresNumbers) {
  const Given examples({
      example({1, 10}, -1, {2, 10}),
      example({4, 30}, -1, {4, 20}),
      example({6, 30}, -1, {9, 30}),
  });
  Arena arena(0);
  const Judgement j = *judge(Echo(), examples, DType::f32, 2, arena);
  EXPECT_TRUE(j.numbers);
  EXPECT_NEAR(j.mse, (1 + 0 + 9 + 0 + 100 + 0) / 6.0, 1e-6);
  EXPECT_NEAR(j.loss, j.mse, 1e-6);
  EXPECT_NEAR(j.mae, (1 + 0 + 3 + 0 + 10 + 0) / 6.0, 1e-6);
  // Of the first number: targets 2, 4, 9 with mean 5 spread 26, residual 10; of the second: 200 and 100.
  EXPECT_NEAR(j.r2, ((1 - 10 / 26.0) + (1 - 100 / 200.0)) / 2, 1e-6);
}

TEST(Judge, PredictsWithoutAnswersOneByOne) {
  const Given examples({example({1, 10}, -1), example({4, 30}, -1), example({6, 50}, -1)});
  for (const int64_t B : {1, 2, 8}) {
    Arena arena(0);
    std::vector<std::vector<float>> outputs;
    predict(Echo(), examples, DType::f32, B, arena,
            [&](std::span<const float> row) { outputs.emplace_back(row.begin(), row.end()); });
    EXPECT_EQ(outputs, (std::vector<std::vector<float>>{{1, 10}, {4, 30}, {6, 50}}));
  }
}

}  // namespace
}  // namespace krait
