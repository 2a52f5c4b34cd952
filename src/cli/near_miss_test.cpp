#include "krait/cli/near_miss.h"

#include <gtest/gtest.h>

#include <array>

namespace krait::cli {
namespace {

TEST(NearMiss, FindsWhatIsAThirdOfTheLettersAway) {
  const std::array<std::string, 5> known = {"prompt", "prompt-file", "max-new", "steps", "lr"};
  EXPECT_EQ(near_miss("promt", known), "prompt");
  EXPECT_EQ(near_miss("porpmt", known), "prompt");  // two pairs swapped
  EXPECT_EQ(near_miss("maxnew", known), "max-new");
  EXPECT_EQ(near_miss("max_new", known), "max-new");
  EXPECT_EQ(near_miss("max", known), "max-new");  // the beginning of a word
  EXPECT_EQ(near_miss("step", known), "steps");
  EXPECT_EQ(near_miss("tempo", known), "");
  EXPECT_EQ(near_miss("l", known), "");
  EXPECT_EQ(near_miss("", known), "");
  EXPECT_EQ(near_miss(std::string(100000, 'p'), known), "");
}

TEST(NearMiss, IsSaidAsAQuestion) {
  const std::array<std::string, 1> known = {"prompt"};
  EXPECT_EQ(did_you_mean("promt", known, "--"), ", did you mean --prompt?");
  EXPECT_EQ(did_you_mean("x", known), "");
}

}  // namespace
}  // namespace krait::cli
