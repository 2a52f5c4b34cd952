#include "krait/base/rng.h"

#include <gtest/gtest.h>

namespace krait {
namespace {

using Words = std::array<uint32_t, 4>;

// The known answers of Random123 for philox4x32-10 (counter words first, then the key).
TEST(Philox, KnownAnswers) {
  const Philox zero{0, 0};
  EXPECT_EQ(zero.words(0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const Philox ones{~uint64_t{0}, ~uint64_t{0}};
  EXPECT_EQ(ones.words(~uint64_t{0}), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  // Counter 243f6a88 85a308d3 13198a2e 03707344, key a4093822 299f31d0: the digits of pi.
  const Philox pi{0x299f31d0a4093822, 0x0370734413198a2e};
  EXPECT_EQ(pi.words(0x85a308d3243f6a88), (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, UniformTakesTheFourWordsInTurn) {
  const Philox rng{1, 2};
  for (uint64_t i = 0; i < 40; ++i) {
    EXPECT_EQ(rng.uniform(i), static_cast<float>(rng.words(i / 4)[i % 4] >> 8) / 16777216.0f);
    EXPECT_GE(rng.uniform(i), 0.0f);
    EXPECT_LT(rng.uniform(i), 1.0f);
  }
}

TEST(Philox, StreamsAndSeedsDiffer) {
  EXPECT_NE((Philox{1, 2}.words(0)), (Philox{1, 3}.words(0)));
  EXPECT_NE((Philox{1, 2}.words(0)), (Philox{2, 2}.words(0)));
}

// Moments of 10^5 draws, within 5 standard errors.
TEST(Philox, NormalHasMeanZeroAndVarianceOne) {
  constexpr int n = 100000;
  const Philox rng{11, 0};
  double sum = 0, square = 0, fourth = 0;
  for (int i = 0; i < n; ++i) {
    const double v = rng.normal(static_cast<uint64_t>(i));
    ASSERT_TRUE(std::isfinite(v));
    sum += v;
    square += v * v;
    fourth += v * v * v * v;
  }
  EXPECT_NEAR(sum / n, 0, 5 / std::sqrt(n));
  EXPECT_NEAR(square / n, 1, 5 * std::sqrt(2.0 / n));
  EXPECT_NEAR(fourth / n, 3, 5 * std::sqrt(96.0 / n));
}

TEST(Philox, UniformDoubleIsEven) {
  constexpr int n = 100000;
  double sum = 0;
  for (int i = 0; i < n; ++i) {
    const double v = Philox{3, 1}.uniform_double(static_cast<uint64_t>(i));
    ASSERT_GE(v, 0.0);
    ASSERT_LT(v, 1.0);
    sum += v;
  }
  EXPECT_NEAR(sum / n, 0.5, 5 * std::sqrt(1.0 / 12 / n));
}

}  // namespace
}  // namespace krait
