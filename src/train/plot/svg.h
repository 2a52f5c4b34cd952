// Panels as one SVG image: two a row, axes with round ticks, a legend of the runs, smoothed lines over
// faint raw ones. No scripts, no fonts of its own: it looks the same in a browser and in a paper.
#pragma once
#include <string>
#include <vector>

#include "krait/train/plot/curves.h"

namespace krait::plot {

std::string svg(const std::vector<NamedRun>& runs);

}  // namespace krait::plot
