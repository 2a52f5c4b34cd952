// Curves in a terminal: braille dots, two by four a character.
#pragma once
#include <string>
#include <vector>

#include "krait/train/plot/curves.h"

namespace krait::plot {

// The smoothed losses of runs, and their validation losses where there are some, `columns` characters wide
// with axes. `colours`: one a run, by ANSI escapes.
std::string terminal(const std::vector<NamedRun>& runs, int columns, bool colours);

}  // namespace krait::plot
