#include "krait/infer/stop_text.h"

#include <gtest/gtest.h>

namespace krait {
namespace {

// What is shown of `text` when it arrives in pieces of `n` bytes.
std::string shown(const std::vector<std::string>& stops, const std::string& text, size_t n,
                  bool* found = nullptr) {
  StopText s(stops);
  std::string out;
  for (size_t i = 0; i < text.size(); i += n) {
    out += s.push(text.substr(i, n));
    for (const std::string& stop : stops) EXPECT_EQ(out.find(stop), std::string::npos);
  }
  if (found) *found = s.found();
  return s.found() ? out : out + s.finish();
}

TEST(StopText, CutsAtTheFirstStopHoweverTheTextArrives) {
  for (size_t n = 1; n < 12; ++n) {
    bool found = false;
    EXPECT_EQ(shown({"END"}, "one EN two END three", n, &found), "one EN two ");
    EXPECT_TRUE(found);
    EXPECT_EQ(shown({"ab", "\n\n"}, "aa\na\n\nab", n), "aa\na");
    EXPECT_EQ(shown({"aab"}, "aaaaab", n), "aaa");
  }
}

TEST(StopText, ShowsEverythingWhereNoStopComes) {
  for (size_t n = 1; n < 12; ++n) {
    bool found = true;
    EXPECT_EQ(shown({"END", "E."}, "the EN", n, &found), "the EN");
    EXPECT_FALSE(found);
    EXPECT_EQ(shown({}, "the EN", n), "the EN");
  }
}

TEST(StopText, HoldsBackNoMoreThanWhatMayBegin) {
  StopText s({"User:"});
  EXPECT_EQ(s.push("Hello U"), "Hello ");
  EXPECT_EQ(s.push("s"), "");
  EXPECT_EQ(s.push("e it"), "Use it");
}

}  // namespace
}  // namespace krait
