// What is plotted of training runs, before it is drawn: panels of curves over the step.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "krait/train/log.h"

namespace krait::plot {

struct Curve {
  size_t run = 0;  // which run, by the order given: its colour
  std::vector<double> x, y;
};

// The raw curves of one quantity, and a smoothed one for each where that helps the eye.
struct Panel {
  std::string title;
  std::vector<Curve> raw, smooth;
  bool dots = false;  // few points: each is marked
};

struct NamedRun {
  std::string name;
  std::vector<LogRecord> log;
};

// Loss, validation loss, gradient norm, learning rate, throughput: those of which some run has a number.
std::vector<Panel> panels(const std::vector<NamedRun>& runs);

// The mean over up to `reach` points on either side. At the start, where curves are steep, as many on the
// right as there are on the left: no lag.
std::vector<double> smoothed(const std::vector<double>& y, size_t reach);

// At most 2 · buckets points that look the same: of each stretch of steps the lowest and the highest.
Curve thinned(const Curve& curve, size_t buckets);

// The range of values that is shown: all of the smoothed curves, and of the raw ones all but the outermost
// hundredth on either side.
struct Range {
  double low = 0, high = 1;
};
Range x_range(const std::vector<Panel>& panels);
Range y_range(const Panel& panel);

// Round numbers (1, 2 or 5 times a power of ten apart) inside the range, about `count` of them.
std::vector<double> ticks(const Range& range, int count);
// "0.25", "1e-04", "12k".
std::string tick_text(double value);

}  // namespace krait::plot
