#include "krait/tensor/stopwatch.h"

#include <gtest/gtest.h>

#include <thread>

namespace krait {
namespace {

TEST(Stopwatch, CountsFromTheLastStart) {
  constexpr auto kNap = std::chrono::milliseconds(20);
  Stopwatch watch(Device{});
  watch.start();
  std::this_thread::sleep_for(2 * kNap);
  const double two = watch.stop();
  watch.start();
  std::this_thread::sleep_for(kNap);
  EXPECT_GE(two, 0.04);
  EXPECT_GE(watch.stop(), 0.02);
}

}  // namespace
}  // namespace krait
