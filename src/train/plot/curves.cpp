#include "krait/train/plot/curves.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>

namespace krait::plot {

namespace {

using Quantity = std::function<std::optional<double>(const LogRecord&)>;

Curve curve_of(const std::vector<LogRecord>& log, size_t run, const Quantity& quantity) {
  Curve c;
  c.run = run;
  for (const LogRecord& r : log) {
    const std::optional<double> y = quantity(r);
    if (!y || !std::isfinite(*y)) continue;
    c.x.push_back(static_cast<double>(r.step));
    c.y.push_back(*y);
  }
  return c;
}

enum class Look { line, smoothed, dots };

void add_panel(std::vector<Panel>& out, const std::vector<NamedRun>& runs, const char* title,
               Look look, const Quantity& quantity) {
  Panel p;
  p.title = title;
  p.dots = look == Look::dots;
  for (size_t i = 0; i < runs.size(); ++i) {
    Curve c = curve_of(runs[i].log, i, quantity);
    if (c.x.empty()) continue;
    if (look == Look::smoothed) {
      Curve s = c;
      s.y = smoothed(c.y, c.y.size() / 60);
      p.smooth.push_back(std::move(s));
    }
    p.raw.push_back(std::move(c));
  }
  if (!p.raw.empty()) out.push_back(std::move(p));
}

void include(Range& r, double low, double high) {
  r.low = std::min(r.low, low);
  r.high = std::max(r.high, high);
}

constexpr Range kNothing = {std::numeric_limits<double>::infinity(),
                            -std::numeric_limits<double>::infinity()};

}  // namespace

std::vector<Panel> panels(const std::vector<NamedRun>& runs) {
  std::vector<Panel> out;
  add_panel(out, runs, "loss (nats a token)", Look::smoothed,
            [](const LogRecord& r) { return r.loss; });
  add_panel(out, runs, "validation loss (nats a token)", Look::dots,
            [](const LogRecord& r) { return r.valid_loss; });
  add_panel(out, runs, "validation accuracy", Look::dots,
            [](const LogRecord& r) { return r.valid_accuracy; });
  add_panel(out, runs, "gradient norm", Look::smoothed,
            [](const LogRecord& r) { return r.grad_norm; });
  add_panel(out, runs, "learning rate", Look::line, [](const LogRecord& r) { return r.lr; });
  add_panel(out, runs, "throughput (tokens/s)", Look::smoothed,
            [](const LogRecord& r) { return r.tokens_per_s; });
  return out;
}

std::vector<double> smoothed(const std::vector<double>& y, size_t reach) {
  std::vector<double> sums = {0};
  for (const double v : y) sums.push_back(sums.back() + v);
  std::vector<double> out;
  for (size_t i = 0; i < y.size(); ++i) {
    const size_t side = std::min(i, reach);
    const size_t from = i - side, to = std::min(i + side + 1, y.size());
    out.push_back((sums[to] - sums[from]) / static_cast<double>(to - from));
  }
  return out;
}

Curve thinned(const Curve& c, size_t buckets) {
  const size_t n = c.x.size();
  if (n <= 2 * buckets) return c;
  Curve out;
  out.run = c.run;
  for (size_t b = 0; b < buckets; ++b) {
    const auto from = c.y.begin() + static_cast<ptrdiff_t>(b * n / buckets);
    const auto to = c.y.begin() + static_cast<ptrdiff_t>((b + 1) * n / buckets);
    auto [first, second] = std::minmax_element(from, to);
    if (second < first) std::swap(first, second);
    for (const auto& it : {first, second}) {
      out.x.push_back(c.x[static_cast<size_t>(it - c.y.begin())]);
      out.y.push_back(*it);
    }
  }
  return out;
}

Range x_range(const std::vector<Panel>& panels) {
  Range r = kNothing;
  for (const Panel& p : panels)
    for (const Curve& c : p.raw) include(r, c.x.front(), c.x.back());
  if (r.low == r.high) include(r, r.low - 1, r.high + 1);
  return r;
}

Range y_range(const Panel& panel) {
  Range r = kNothing;
  for (const Curve& c : panel.smooth)
    for (const double y : c.y) include(r, y, y);
  for (const Curve& c : panel.raw) {
    std::vector<double> sorted = c.y;
    std::sort(sorted.begin(), sorted.end());
    const size_t cut = sorted.size() / 100;
    include(r, sorted[cut], sorted[sorted.size() - 1 - cut]);
  }
  // A quantity that does not change is drawn in the middle, whatever its rounding errors are.
  const bool flat = r.high - r.low <= 1e-6 * std::abs(r.high);
  const double margin = flat ? std::max(std::abs(r.high) * 0.1, 1e-12) : 0.05 * (r.high - r.low);
  const bool positive = r.low >= 0;
  include(r, r.low - margin, r.high + margin);
  if (positive) r.low = std::max(r.low, 0.0);
  return r;
}

std::vector<double> ticks(const Range& range, int count) {
  const double rough = (range.high - range.low) / count;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double m : {1.0, 2.0, 5.0})
    if (m * power >= rough) {
      step = m * power;
      break;
    }
  std::vector<double> out;
  const double first = std::ceil(range.low / step - 1e-9);
  for (int k = 0; (first + k) * step <= range.high + 1e-9 * step && k <= count + 1; ++k)
    out.push_back((first + k) * step);
  return out;
}

std::string tick_text(double v) {
  const double a = std::abs(v);
  if (a < 1e-12) return "0";
  if (a >= 1e6) return fmt::format("{:g}M", v / 1e6);
  if (a >= 1e4) return fmt::format("{:g}k", v / 1e3);
  if (a < 1e-2) return fmt::format("{:.3g}", v);
  return fmt::format("{:.6g}", v);
}

}  // namespace krait::plot
