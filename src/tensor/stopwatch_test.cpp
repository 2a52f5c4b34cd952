#include "krait/tensor/stopwatch.h"

#include <gtest/gtest.h>

#include <thread>

namespace krait {
namespace {

TEST(Stopwatch, CountsFromTheLastStart) {
  using Clock = std::chrono::steady_clock;
  constexpr auto kNap = std::chrono::milliseconds(20);
  Stopwatch watch(Device{});
  watch.start();
  std::this_thread::sleep_for(2 * kNap);
  EXPECT_GE(watch.stop(), 0.04);
  const auto before = Clock::now();
  watch.start();
  std::this_thread::sleep_for(kNap);
  const double again = watch.stop();
  EXPECT_GE(again, 0.02);
  EXPECT_LE(again, std::chrono::duration<double>(Clock::now() - before).count());
}

}  // namespace
}  // namespace krait
