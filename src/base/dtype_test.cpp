#include "krait/base/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace krait {
namespace {

// The value of 16 bits by the definition: sign, exponent, fraction.
double value_of(uint32_t bits, int exponent_bits, int fraction_bits) {
  const uint32_t exponent_mask = (1u << exponent_bits) - 1;
  const uint32_t exponent = (bits >> fraction_bits) & exponent_mask,
                 fraction = bits & ((1u << fraction_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = bits >> 15 ? -1 : 1;
  const double part = std::ldexp(fraction, -fraction_bits);
  if (exponent == exponent_mask)
    return fraction ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(part, 1 - bias);
  return sign * std::ldexp(1 + part, static_cast<int>(exponent) - bias);
}

template <class T>
void expect_all_bits_round_trip(int exponent_bits, int fraction_bits) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    T h;
    h.bits = static_cast<uint16_t>(bits);
    const float f = static_cast<float>(h);
    const double exact = value_of(bits, exponent_bits, fraction_bits);
    if (std::isnan(exact)) {
      ASSERT_TRUE(std::isnan(f)) << bits;
      ASSERT_TRUE(std::isnan(static_cast<float>(T(f)))) << bits;
      continue;
    }
    ASSERT_EQ(static_cast<double>(f), exact) << bits;
    ASSERT_EQ(std::signbit(f), std::signbit(exact)) << bits;
    ASSERT_EQ(T(f).bits, bits);
  }
}

// Between every two neighbours: the middle goes to the even one, a hair beside it to the nearer one.
template <class T>
void expect_rounds_to_nearest_even(uint32_t largest_finite) {
  for (uint32_t bits = 0; bits < largest_finite; ++bits) {
    T low, high;
    low.bits = static_cast<uint16_t>(bits);
    high.bits = static_cast<uint16_t>(bits + 1);
    const double a = static_cast<float>(low), b = static_cast<float>(high);
    const float middle = static_cast<float>(a + (b - a) / 2);  // exact: both have few digits
    const uint32_t even = bits % 2 ? bits + 1 : bits;
    ASSERT_EQ(T(middle).bits, even) << bits;
    ASSERT_EQ(T(-middle).bits, even | 0x8000u) << bits;
    ASSERT_EQ(T(std::nextafter(middle, 0.0f)).bits, bits);
    ASSERT_EQ(T(std::nextafter(middle, std::numeric_limits<float>::infinity())).bits, bits + 1);
  }
}

TEST(Bfloat16, All65536RoundTrip) { expect_all_bits_round_trip<bf16>(8, 7); }
TEST(Float16, All65536RoundTrip) { expect_all_bits_round_trip<f16>(5, 10); }
TEST(Bfloat16, RoundsToNearestEven) { expect_rounds_to_nearest_even<bf16>(0x7f7f); }
TEST(Float16, RoundsToNearestEven) { expect_rounds_to_nearest_even<f16>(0x7bff); }

TEST(Float16, TooLargeIsInfinity) {
  EXPECT_EQ(f16(65504.0f).bits, 0x7bff);
  EXPECT_EQ(f16(65519.99f).bits, 0x7bff);
  EXPECT_EQ(f16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(f16(-1e30f).bits, 0xfc00);
  EXPECT_EQ(f16(1e-10f).bits, 0);
  EXPECT_EQ(f16(-1e-10f).bits, 0x8000);
}

TEST(Bfloat16, TooLargeIsInfinity) {
  EXPECT_EQ(bf16(std::numeric_limits<float>::max()).bits, 0x7f80);
  EXPECT_EQ(bf16(std::numeric_limits<float>::infinity()).bits, 0x7f80);
}

TEST(DType, SizesAndNames) {
  EXPECT_EQ(size_of(DType::bf16), 2u);
  EXPECT_EQ(size_of(DType::f32), 4u);
  EXPECT_EQ(size_of(DType::i64), 8u);
  EXPECT_EQ(size_of(DType::u8), 1u);
  EXPECT_EQ(name_of(DType::bf16), "bfloat16");
  EXPECT_EQ(name_of(DType::i32), "int32");
  EXPECT_EQ(dtype_of<bf16>(), DType::bf16);
}

}  // namespace
}  // namespace krait
