#include "krait/train/plot/terminal.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace krait::plot {

namespace {

constexpr int kRows = 14, kLabel = 9;  // characters: height, and width of the tick labels
constexpr std::array kAnsi = {34, 33, 32, 35, 36, 31};

// The bits of a braille character (U+2800 + bits), by row and column of its dots.
constexpr int kDot[4][2] = {{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};

class Canvas {
 public:
  Canvas(int columns, int rows)
      : columns_(columns), rows_(rows), cells_(static_cast<size_t>(columns * rows)) {}

  int width() const { return columns_ * 2; }
  int height() const { return rows_ * 4; }

  void dot(int x, int y, size_t run) {
    if (x < 0 || y < 0 || x >= width() || y >= height()) return;
    Cell& c = cells_[static_cast<size_t>(y / 4 * columns_ + x / 2)];
    c.bits |= kDot[y % 4][x % 2];
    c.run = run;
  }

  void line(int x0, int y0, int x1, int y1, size_t run) {
    const int n = std::max({std::abs(x1 - x0), std::abs(y1 - y0), 1});
    for (int i = 0; i <= n; ++i) dot(x0 + (x1 - x0) * i / n, y0 + (y1 - y0) * i / n, run);
  }

  std::string row(int r, bool colours) const {
    std::string out;
    for (int x = 0; x < columns_; ++x) {
      const Cell& c = cells_[static_cast<size_t>(r * columns_ + x)];
      if (c.bits == 0) {
        out += ' ';
        continue;
      }
      // U+2800 to U+28FF in UTF-8.
      const std::string glyph = {'\xe2', static_cast<char>(0xa0 | (c.bits >> 6)),
                                 static_cast<char>(0x80 | (c.bits & 0x3f))};
      out += colours ? fmt::format("\x1b[{}m{}\x1b[0m", kAnsi[c.run % kAnsi.size()], glyph) : glyph;
    }
    return out;
  }

 private:
  struct Cell {
    int bits = 0;
    size_t run = 0;
  };
  int columns_, rows_;
  std::vector<Cell> cells_;
};

std::string draw(const Panel& panel, const Range& xs, int columns, bool colours) {
  Canvas canvas(std::max(columns - kLabel - 2, 10), kRows);
  const std::vector<Curve>& curves = panel.smooth.empty() ? panel.raw : panel.smooth;
  Panel shown = panel;
  shown.raw = curves;
  const Range ys = y_range(shown);
  const auto place = [](double v, const Range& r, int n) {
    return static_cast<int>(std::lround((v - r.low) / (r.high - r.low) * (n - 1)));
  };
  const auto px = [&](double x) { return place(x, xs, canvas.width()); };
  const auto py = [&](double y) { return canvas.height() - 1 - place(y, ys, canvas.height()); };
  for (const Curve& c : curves)
    for (size_t i = 0; i < c.x.size(); ++i) {
      const size_t before = i == 0 ? 0 : i - 1;
      canvas.line(px(c.x[before]), py(c.y[before]), px(c.x[i]), py(c.y[i]), c.run);
    }
  std::vector<std::string> labels(kRows);
  for (const double t : ticks(ys, 4)) labels[static_cast<size_t>(py(t) / 4)] = tick_text(t);
  std::string out =
      fmt::format("{:>{}}\n", panel.title, kLabel + 2 + static_cast<int>(panel.title.size()));
  for (int r = 0; r < kRows; ++r)
    out += fmt::format("{:>{}} {} {}\n", labels[static_cast<size_t>(r)], kLabel - 1,
                       labels[static_cast<size_t>(r)].empty() ? "│" : "┤", canvas.row(r, colours));
  std::string rule;
  for (int x = 0; x < canvas.width() / 2; ++x) rule += "─";
  const std::string first = tick_text(xs.low), last = "step " + tick_text(xs.high);
  out += fmt::format("{:>{}}└─{}\n", "", kLabel, rule);
  const int gap = canvas.width() / 2 - static_cast<int>(first.size());
  return out + fmt::format("{:>{}}{}{:>{}}\n", "", kLabel + 2, first, last, std::max(gap, 1));
}

}  // namespace

std::string terminal(const std::vector<NamedRun>& runs, int columns, bool colours) {
  std::vector<Panel> shown;
  for (Panel& p : panels(runs))
    if (p.title.find("loss") != std::string::npos) shown.push_back(std::move(p));
  std::string out;
  for (const Panel& p : shown) out += draw(p, x_range(shown), columns, colours);
  for (size_t i = 0; i < runs.size(); ++i) {
    const std::string& name = runs[i].name;
    if (runs.size() > 1)
      out += colours ? fmt::format("\x1b[{}m━━\x1b[0m {}\n", kAnsi[i % kAnsi.size()], name)
                     : fmt::format("{}\n", name);
  }
  return out;
}

}  // namespace krait::plot
