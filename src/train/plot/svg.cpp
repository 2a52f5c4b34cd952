#include "krait/train/plot/svg.h"

#include <fmt/format.h>

#include <array>

namespace krait::plot {

namespace {

// Sizes in pixels. A panel's plot area lies inside its cell with room for title and tick labels.
constexpr double kCellWidth = 560, kCellHeight = 300, kMargin = 20;
constexpr double kLeft = 64, kRight = 16, kTop = 40, kBottom = 42;
constexpr double kLegendRow = 22;
constexpr size_t kBuckets = 500;  // points of a line: twice that

// Okabe and Ito's colours, told apart by colour-blind eyes too.
constexpr std::array kColours = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                 "#e69f00", "#56b4e9", "#7f7f7f", "#000000"};

const char* colour(size_t run) { return kColours[run % kColours.size()]; }

// XML's special characters escaped, control characters left out.
std::string escaped(const std::string& s) {
  std::string out;
  for (const char c : s) {
    if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '"') {
      out += "&quot;";
    } else if (static_cast<unsigned char>(c) >= 0x20) {
      out += c;
    }
  }
  return out;
}

class PanelDrawing {
 public:
  PanelDrawing(const Panel& panel, const Range& xs, double left, double top, size_t index)
      : panel_(panel),
        x0_(left + kLeft),
        y0_(top + kTop),
        width_(kCellWidth - kLeft - kRight),
        height_(kCellHeight - kTop - kBottom),
        xs_(xs),
        ys_(y_range(panel)),
        index_(index) {}

  std::string draw() {
    frame();
    out_ += fmt::format("<g clip-path=\"url(#area{})\">\n", index_);
    const bool faint = !panel_.smooth.empty();
    for (const Curve& c : panel_.raw) line(c, faint ? 1.0 : 1.8, faint ? 0.25 : 1.0);
    for (const Curve& c : panel_.smooth) line(c, 1.8, 1.0);
    if (panel_.dots)
      for (const Curve& c : panel_.raw) dots(c);
    out_ += "</g>\n";
    return out_;
  }

 private:
  double px(double x) const { return x0_ + (x - xs_.low) / (xs_.high - xs_.low) * width_; }
  double py(double y) const {
    return y0_ + height_ - (y - ys_.low) / (ys_.high - ys_.low) * height_;
  }

  void frame() {
    out_ += fmt::format(
        "<clipPath id=\"area{}\"><rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" "
        "height=\"{:.1f}\"/>"
        "</clipPath>\n",
        index_, x0_, y0_, width_, height_);
    out_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" class=\"title\">{}</text>\n", x0_,
                        y0_ - 12, escaped(panel_.title));
    for (const double t : ticks(ys_, 5)) {
      out_ +=
          fmt::format("<path d=\"M{:.1f} {:.1f}h{:.1f}\" class=\"grid\"/>\n", x0_, py(t), width_);
      out_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>\n",
                          x0_ - 8, py(t) + 4, tick_text(t));
    }
    for (const double t : ticks(xs_, 6)) {
      out_ += fmt::format("<path d=\"M{:.1f} {:.1f}v5\" class=\"axis\"/>\n", px(t), y0_ + height_);
      out_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>\n",
                          px(t), y0_ + height_ + 19, tick_text(t));
    }
    out_ += fmt::format("<path d=\"M{:.1f} {:.1f}v{:.1f}h{:.1f}\" class=\"axis\"/>\n", x0_, y0_,
                        height_, width_);
    out_ += fmt::format(
        "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\" class=\"label\">step</text>\n",
        x0_ + width_ / 2, y0_ + height_ + 36);
  }

  void line(const Curve& curve, double stroke, double opacity) {
    const Curve c = thinned(curve, kBuckets);
    std::string points;
    for (size_t i = 0; i < c.x.size(); ++i)
      points += fmt::format("{:.1f},{:.1f} ", px(c.x[i]), py(c.y[i]));
    out_ += fmt::format(
        "<polyline points=\"{}\" stroke=\"{}\" stroke-width=\"{}\" stroke-opacity=\"{}\"/>\n",
        points, colour(c.run), stroke, opacity);
  }

  void dots(const Curve& curve) {
    const Curve c = thinned(curve, kBuckets / 10);
    for (size_t i = 0; i < c.x.size(); ++i)
      out_ += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.6\" fill=\"{}\"/>\n",
                          px(c.x[i]), py(c.y[i]), colour(c.run));
  }

  const Panel& panel_;
  double x0_, y0_, width_, height_;
  Range xs_, ys_;
  size_t index_;
  std::string out_;
};

}  // namespace

std::string svg(const std::vector<NamedRun>& runs) {
  const std::vector<Panel> all = panels(runs);
  const size_t columns = all.size() > 1 ? 2 : 1, rows = (all.size() + columns - 1) / columns;
  const double legend = kLegendRow * static_cast<double>(runs.size());
  const double width = kMargin * 2 + kCellWidth * static_cast<double>(columns);
  const double height = kMargin * 2 + legend + kCellHeight * static_cast<double>(rows);
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" "
      "viewBox=\"0 0 {0:.0f} {1:.0f}\">\n"
      "<style>text{{font:12px system-ui,Helvetica,Arial,sans-serif;fill:#444}}"
      ".title{{font-size:14px;font-weight:600;fill:#222}}.label{{fill:#777}}.name{{font-size:13px}}"
      "polyline{{fill:none;stroke-linejoin:round}}.grid{{stroke:#e8e8e8;fill:none}}"
      ".axis{{stroke:#888;fill:none}}</style>\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
      width, height);
  for (size_t i = 0; i < runs.size(); ++i) {
    const double y = kMargin + kLegendRow * (static_cast<double>(i) + 0.5);
    out += fmt::format(
        "<path d=\"M{0:.1f} {1:.1f}h28\" stroke=\"{2}\" stroke-width=\"3\"/>"
        "<text x=\"{3:.1f}\" y=\"{4:.1f}\" class=\"name\">{5}</text>\n",
        kMargin + kLeft, y, colour(i), kMargin + kLeft + 38, y + 4, escaped(runs[i].name));
  }
  const Range xs = x_range(all);
  for (size_t i = 0; i < all.size(); ++i)
    out += PanelDrawing(all[i], xs, kMargin + kCellWidth * static_cast<double>(i % columns),
                        kMargin + legend + kCellHeight * static_cast<double>(i / columns), i)
               .draw();
  return out + "</svg>\n";
}

}  // namespace krait::plot
