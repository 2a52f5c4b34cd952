// A segment is a stretch of a model whose inside can be forgotten, usually a layer. It gives one rule
// for memory in all three uses of a model:
//
//   inference          the inside lives at the high end and is given back; only the results stay
//   training           the inside is kept for backward; when backward has passed the segment, the
//                      gradients inside it are given back
//   training, recompute  as inference going forward; backward runs the body again, then through it
//
// The body must compute the same results when run twice: states go in and come out as separate tensors.
// Gradients reach the outside only through `inputs` and parameters.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "krait/autograd/tape.h"

namespace krait {

using Tensors = std::vector<Tensor>;
using Body = std::function<Tensors(Context&)>;

struct SegmentOptions {
  bool recompute = false;
  // Without a tape: the low end is set back to this mark before the results are kept, so that they take
  // the place of inputs which nobody needs any more (a residual stream needs one buffer, not one a layer).
  size_t replace_from = SIZE_MAX;
};

// Returns the body's results. `inputs` are the variables from outside that the body reads.
Tensors segment(Context& c, const Tensors& inputs, const Body& body,
                const SegmentOptions& options = {});

}  // namespace krait
