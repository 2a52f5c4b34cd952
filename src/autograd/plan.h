// Planning: the same code as the real run, with an arena that has no memory behind it. What comes back is
// exact: an arena of plan.bytes holds the run, one of less does not.
#pragma once
#include <functional>

#include "krait/autograd/tape.h"

namespace krait {

struct Plan {
  size_t bytes = 0;                   // peak of the step arena
  std::map<std::string, Cost> costs;  // by op
};

// Runs `work` with a copy of `like` (device, activation type, training flag); with a tape where
// `recording`. Tensors that `work` reads may have no memory.
Plan plan(const Context& like, bool recording, const std::function<void(Context&)>& work);

}  // namespace krait
