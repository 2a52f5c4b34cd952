#include "krait/base/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

#include "krait/base/error.h"

namespace krait {
namespace {

class Threads : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override { set_threads(GetParam()); }
  void TearDown() override { set_threads(before_); }
  int before_ = threads();
};

TEST_P(Threads, EachPieceOnce) {
  for (int64_t n : {0, 1, 2, 7, 1000}) {
    std::vector<std::atomic<int>> runs(static_cast<size_t>(n));
    parallel_for(n, [&](int64_t i) { ++runs[static_cast<size_t>(i)]; });
    for (const auto& r : runs) EXPECT_EQ(r, 1);
  }
}

TEST_P(Threads, RangesCoverAllAndDependOnTheGrainAlone) {
  std::vector<std::atomic<int64_t>> begins(103);
  parallel_ranges(103, 10, [&](int64_t begin, int64_t end) {
    EXPECT_EQ(end - begin, begin == 100 ? 3 : 10);
    for (int64_t i = begin; i < end; ++i) begins[static_cast<size_t>(i)] += begin + 1;
  });
  for (size_t i = 0; i < begins.size(); ++i)
    EXPECT_EQ(begins[i], static_cast<int64_t>(i / 10 * 10 + 1));
}

TEST_P(Threads, ExceptionsComeOut) {
  std::atomic<int> ran = 0;
  EXPECT_THROW(parallel_for(100,
                            [&](int64_t i) {
                              ++ran;
                              if (i == 50) fail("piece {}", i);
                            }),
               Error);
  EXPECT_GT(ran, 0);
  parallel_for(10, [&](int64_t) { ++ran; });  // the pool still works
}

TEST_P(Threads, InsideAPieceRunsInPlace) {
  std::atomic<int> sum = 0;
  parallel_for(4, [&](int64_t) { parallel_for(5, [&](int64_t) { ++sum; }); });
  EXPECT_EQ(sum, 20);
}

INSTANTIATE_TEST_SUITE_P(Counts, Threads, ::testing::Values(1, 2, 4));

}  // namespace
}  // namespace krait
