#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "krait/train/plot/svg.h"
#include "krait/train/plot/terminal.h"

namespace krait::plot {
namespace {

using Numbers = std::vector<double>;

NamedRun falling(const std::string& name, int64_t steps) {
  NamedRun run;
  run.name = name;
  for (int64_t s = 1; s <= steps; ++s) {
    LogRecord r;
    r.step = s;
    r.loss = 1.0 + 4.0 / static_cast<double>(s);
    r.grad_norm = 1.0;
    r.lr = 1e-3;
    r.tokens_per_s = 5000;
    if (s % 10 == 0) r.valid_loss = r.loss + 0.1;
    run.log.push_back(r);
  }
  return run;
}

size_t count(const std::string& text, const std::string& what) {
  size_t n = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
  return n;
}

TEST(Plot, TicksAreRoundNumbersInside) {
  EXPECT_EQ(ticks({0, 10}, 5), (Numbers{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(ticks({1.2, 2.9}, 4), (Numbers{1.5, 2.0, 2.5}));
  const Numbers small = ticks({0, 1e-3}, 4);
  ASSERT_EQ(small.size(), 3u);
  EXPECT_NEAR(small[1], 5e-4, 1e-15);
}

TEST(Plot, SmoothingHasNoLagAtTheStartAndKeepsConstants) {
  for (const double v : smoothed({3, 3, 3}, 10)) EXPECT_DOUBLE_EQ(v, 3);
  EXPECT_EQ(smoothed({9, 6, 3, 0, 0, 3}, 2), (Numbers{9, 6, 3.6, 2.4, 1.5, 1}));
}

TEST(Plot, ThinningKeepsPeaks) {
  Curve c;
  for (int i = 0; i < 10000; ++i) {
    c.x.push_back(i);
    c.y.push_back(i == 7777 ? 100 : std::sin(i));
  }
  const Curve t = thinned(c, 100);
  EXPECT_EQ(t.x.size(), 200u);
  EXPECT_EQ(*std::max_element(t.y.begin(), t.y.end()), 100);
  EXPECT_TRUE(std::is_sorted(t.x.begin(), t.x.end()));
}

TEST(Plot, SvgHasAPanelAQuantityAndALineARun) {
  const std::string image = svg({falling("runs/a", 100), falling("b<&>", 50)});
  EXPECT_EQ(image.rfind("<svg ", 0), 0u);
  EXPECT_EQ(count(image, "class=\"title\""), 5u);
  // Loss, norm and throughput: raw and smoothed; validation and rate: one line each.
  EXPECT_EQ(count(image, "<polyline"), 2u * (3 * 2 + 2));
  EXPECT_NE(image.find("b&lt;&amp;&gt;"), std::string::npos);
  EXPECT_EQ(image.find("nan"), std::string::npos);
  EXPECT_EQ(image.find("inf"), std::string::npos);
}

TEST(Plot, ShortAndBrokenRunsAreDrawn) {
  NamedRun one = falling("one", 1);
  NamedRun broken = falling("broken", 3);
  broken.log[1].loss = std::numeric_limits<double>::quiet_NaN();
  for (const auto& runs : {std::vector{one}, std::vector{broken}, std::vector{one, broken}}) {
    const std::string image = svg(runs);
    EXPECT_EQ(image.find("nan"), std::string::npos);
    EXPECT_EQ(image.find("inf"), std::string::npos);
    EXPECT_FALSE(terminal(runs, 80, false).empty());
  }
}

TEST(Plot, TheTerminalShowsAFallingLine) {
  const std::string text = terminal({falling("a", 200)}, 60, false);
  EXPECT_NE(text.find("loss (nats a token)"), std::string::npos);
  EXPECT_NE(text.find("step 200"), std::string::npos);
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  // The first row of the plot has its dots at the left, the last one further right.
  Numbers first_dot;
  size_t begin = 0;
  for (size_t end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const std::string line = text.substr(begin, end - begin);
    const size_t dot =
        line.find("\xe2\xa0") == std::string::npos ? line.find("\xe2\xa1") : line.find("\xe2\xa0");
    if (dot != std::string::npos) first_dot.push_back(static_cast<double>(dot));
  }
  ASSERT_GT(first_dot.size(), 3u);
  EXPECT_LE(first_dot.front(), first_dot[first_dot.size() / 2]);
}

}  // namespace
}  // namespace krait::plot
