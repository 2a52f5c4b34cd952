#include "krait/tensor/arena.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "krait/tensor/memory.h"
#include "krait/testing/files.h"

namespace krait {
namespace {

using testing::error_of;

TEST(Arena, TwoStacksOfAlignedBlocks) {
  Arena a(1024);
  auto* low = static_cast<std::byte*>(a.take_low(1));
  auto* next = static_cast<std::byte*>(a.take_low(65));
  auto* high = static_cast<std::byte*>(a.take_high(100));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(low) % Arena::kAlign, 0u);
  EXPECT_EQ(next, low + 64);
  EXPECT_EQ(high, low + 1024 - 128);
  EXPECT_EQ(a.low(), 192u);
  EXPECT_EQ(a.high(), 128u);
  EXPECT_EQ(a.peak(), 320u);
}

TEST(Arena, SameCallsSameAddressesAfterReset) {
  Arena a(4096);
  void* const first = a.take_low(100);
  void* const high = a.take_high(100);
  a.reset();
  EXPECT_EQ(a.take_low(100), first);
  EXPECT_EQ(a.take_high(100), high);
}

TEST(Arena, FullToTheLastByteAndNotOneMore) {
  Arena a(1024);
  a.take_low(512);
  a.take_high(512);
  EXPECT_EQ(error_of([&] { a.take_low(1); }),
            "working memory exhausted: 1 bytes wanted, 1024 of 1024 in use");
  a.set_high(0);
  EXPECT_NO_THROW(a.take_low(512));
  EXPECT_THROW(a.take_high(SIZE_MAX), Error);
  EXPECT_THROW(a.take_high(SIZE_MAX - 100), Error);
}

TEST(Arena, PlanningCountsWithoutMemory) {
  Arena plan = Arena::planning();
  EXPECT_TRUE(plan.is_planning());
  plan.take_low(size_t{100} << 30);
  plan.take_high(1000);
  plan.set_low(0);
  plan.take_low(64);
  EXPECT_EQ(plan.peak(), (size_t{100} << 30) + 1024);
  EXPECT_EQ(error_of([&] { plan.take_low(SIZE_MAX / 4); }),
            "this would take more than 2305843009213693952 bytes of memory: ask for less at once");
}

TEST(Arena, MovesWithItsMemory) {
  Arena a(1024);
  void* const p = a.take_low(64);
  std::memset(p, 7, 64);
  Arena b = std::move(a);
  EXPECT_EQ(static_cast<unsigned char*>(p)[63], 7);
  EXPECT_EQ(b.low(), 64u);
  a = Arena(64);
  EXPECT_EQ(b.low(), 64u);
}

TEST(Context, ScratchIsGivenBack) {
  Arena arena(4096);
  Context c;
  c.arena = &arena;
  const Tensor kept = c.alloc({4, 4}, DType::f32);
  {
    const Scratch outer(c);
    const Tensor a = c.scratch({16}, DType::f32);
    {
      const Scratch inner(c);
      EXPECT_NE(c.scratch({16}, DType::f32).data, a.data);
    }
    EXPECT_EQ(arena.high(), 64u);
    EXPECT_THROW(c.alloc({1}, DType::f32), Error);
  }
  EXPECT_EQ(arena.high(), 0u);
  EXPECT_EQ(arena.low(), kept.bytes());
  EXPECT_THROW(c.scratch({1}, DType::f32), Error);
}

TEST(Context, ResultsGoToEitherEnd) {
  Arena arena(4096);
  Context c;
  c.arena = &arena;
  c.results_at_high_end = true;
  c.alloc({16}, DType::f32);
  EXPECT_EQ(arena.low(), 0u);
  EXPECT_EQ(arena.high(), 64u);
}

TEST(Context, CostsAddUp) {
  std::map<std::string, Cost> costs;
  Context c;
  c.cost("op", 1, 2);  // nowhere to go
  c.costs = &costs;
  c.cost("op", 10, 20);
  c.cost("op", 1, 2);
  EXPECT_EQ(costs["op"].bytes, 11);
  EXPECT_EQ(costs["op"].flops, 22);
}

TEST(Memory, FillAndCopyConvert) {
  Arena arena(1 << 20);
  Context c;
  c.arena = &arena;
  const Tensor f = c.alloc({70000}, DType::f32), h = c.alloc({70000}, DType::bf16);
  fill(c, h, 1.5f);
  copy(c, h, f);
  for (int64_t i : {0, 1, 65535, 65536, 69999}) EXPECT_EQ(get(f, i), 1.5);
  set(f, 69999, 1 + 0x1p-9);  // rounds down
  copy(c, f, h);
  EXPECT_EQ(get(h, 69999), 1.0);
  fill(c, f, 0);
  EXPECT_EQ(get(f, 69999), 0.0);
  EXPECT_THROW(copy(c, f, h.slice(0, 0, 3)), Error);
}

}  // namespace
}  // namespace krait
