#include "krait/tensor/tensor.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "krait/testing/files.h"

namespace krait {
namespace {

using testing::error_of;

std::vector<float> counting(size_t n) {
  std::vector<float> v(n);
  std::iota(v.begin(), v.end(), 0.0f);
  return v;
}

TEST(Shape, Sizes) {
  const Shape s{2, 128, 768};
  EXPECT_EQ(to_string(s), "(2, 128, 768)");
  EXPECT_EQ(to_string(Shape{5}), "(5,)");
  EXPECT_EQ(s.numel(), 2 * 128 * 768);
  EXPECT_EQ(s.rows(), 256);
  EXPECT_EQ(s[-1], 768);
  EXPECT_EQ((Shape{3, 0}).rows(), 0);
  EXPECT_EQ((Shape{int64_t{1} << 20, int64_t{1} << 20}).numel(), int64_t{1} << 40);
  EXPECT_FALSE((Shape{2, 3}) == (Shape{3, 2}));
  EXPECT_FALSE((Shape{2}) == (Shape{2, 1}));
  EXPECT_THROW((Shape{1, 1, 1, 1, 1, 1}), Error);
}

TEST(Tensor, SlicesAndSelectionsAreViews) {
  std::vector<float> v = counting(24);
  const Tensor t(v.data(), DType::f32, {2, 3, 4});
  const Tensor s = t.slice(1, 1, 3);
  EXPECT_EQ(s.shape, (Shape{2, 2, 4}));
  EXPECT_FALSE(s.contiguous());
  for (int64_t i = 0; i < 16; ++i) EXPECT_EQ(get(s, i), i / 8 * 12 + 4 + i % 8);
  const Tensor column = t.select(-1, 2);
  EXPECT_EQ(column.shape, (Shape{2, 3}));
  for (int64_t i = 0; i < 6; ++i) EXPECT_EQ(get(column, i), 4 * i + 2);
  set(column, 5, -1);
  EXPECT_EQ(v[22], -1);
  EXPECT_EQ(t.slice(0, 1, 1).numel(), 0);
  EXPECT_EQ(error_of([&] { t.slice(1, 2, 4); }), "slice [2, 4) of axis 1 is outside (2, 3, 4)");
  EXPECT_EQ(error_of([&] { t.slice(1, 2, 1); }), "slice [2, 1) of axis 1 is outside (2, 3, 4)");
}

TEST(Tensor, RowsAtOneDistance) {
  std::vector<float> v = counting(48);
  const Tensor t(v.data(), DType::f32, {2, 3, 8});
  EXPECT_TRUE(t.row_strided());
  const Tensor half = t.slice(-1, 4, 8);
  EXPECT_TRUE(half.row_strided());
  EXPECT_EQ(half.row_stride(), 8);
  EXPECT_FALSE(t.slice(1, 0, 2).row_strided());  // a gap after every second row
  EXPECT_TRUE(t.slice(0, 1, 2).slice(1, 0, 2).row_strided());
  EXPECT_FALSE(t.select(-1, 0).row_strided());
  EXPECT_EQ(t.select(1, 2).row_stride(), 24);
}

TEST(Tensor, ReshapeKeepsTheMemory) {
  std::vector<float> v = counting(24);
  const Tensor t(v.data(), DType::f32, {2, 12});
  EXPECT_EQ(get(t.reshape({4, 6}).select(0, 3), 0), 18);
  EXPECT_EQ(error_of([&] { t.reshape({5, 5}); }), "cannot reshape (2, 12) to (5, 5)");
  EXPECT_EQ(error_of([&] { t.slice(1, 0, 2).reshape({4}); }), "reshape needs a contiguous tensor");
}

TEST(Tensor, AsChecksTheType) {
  float f = 0;
  const Tensor t(&f, DType::f32, {1});
  EXPECT_EQ(t.as<float>(), &f);
  EXPECT_EQ(error_of([&] { t.as<int32_t>(); }), "expected a int32 tensor, got float32");
}

TEST(Tensor, CopyConvertsBetweenAnyTypesAndStrides) {
  std::vector<float> v = counting(24);
  const Tensor strided = Tensor(v.data(), DType::f32, {3, 8}).slice(1, 2, 7);
  for (DType type :
       {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i32, DType::i64, DType::u8}) {
    std::vector<std::byte> memory(15 * size_of(type));
    const Tensor to(memory.data(), type, {3, 5});
    copy_host(strided, to);
    for (int64_t i = 0; i < 15; ++i) EXPECT_EQ(get(to, i), i / 5 * 8 + 2 + i % 5) << name_of(type);
    std::vector<float> back(15);
    copy_host(to, Tensor(back.data(), DType::f32, {3, 5}));
    for (int64_t i = 0; i < 15; ++i)
      EXPECT_EQ(back[static_cast<size_t>(i)], get(strided, i)) << name_of(type);
  }
  EXPECT_EQ(error_of([&] { copy_host(strided, strided.slice(1, 0, 3)); }),
            "copy: expected shape (3, 3), got (3, 5)");
}

TEST(Tensor, OffsetsOf64Bits) {
  const Tensor t(nullptr, DType::f32, {3, int64_t{1} << 31});
  EXPECT_EQ(reinterpret_cast<uintptr_t>(t.select(0, 2).data), uintptr_t{1} << 34);
}

}  // namespace
}  // namespace krait
