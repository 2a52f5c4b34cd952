#include "krait/nn/param.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace krait::nn {
namespace {

// The steps that biases of `n` channels stand for.
std::vector<double> steps(double low, double high, double floor, int64_t n) {
  std::vector<float> biases(static_cast<size_t>(n));
  inverse_softplus(low, high, floor)(Tensor(biases.data(), DType::f32, {n}), Philox{1, 2});
  std::vector<double> dt;
  for (const float b : biases) dt.push_back(std::log1p(std::exp(static_cast<double>(b))));
  std::sort(dt.begin(), dt.end());
  return dt;
}

TEST(Param, T2_BiasesOfStepsAreLogUniformAndHaveAFloor) {
  const int64_t n = 4000;
  const std::vector<double> free = steps(1e-5, 0.1, 1e-9, n), held = steps(1e-5, 0.1, 1e-4, n);
  // A quarter of the logarithms lies below the floor.
  for (const auto& [place, expected] : {std::pair{n / 4, 1e-4}, {n / 2, 1e-3}, {3 * n / 4, 1e-2}})
    EXPECT_NEAR(std::log10(free[static_cast<size_t>(place)]), std::log10(expected), 0.15);
  EXPECT_LT(free.front(), 1.2e-5);
  EXPECT_GT(free.back(), 0.08);
  EXPECT_LT(free.back(), 0.1001);
  EXPECT_NEAR(held.front(), 1e-4, 1e-9);
  EXPECT_NEAR(held[static_cast<size_t>(n / 5)], 1e-4, 1e-9);
  EXPECT_EQ(held.back(), free.back());
}

}  // namespace
}  // namespace krait::nn
