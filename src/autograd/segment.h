// A segment is a stretch of a model, usually a layer, whose inside can be forgotten. One rule for memory
// serves inference and training:
//
//   inference            the inside lives at the high end and is given back; only the results stay
//   training             forward as in inference, except that results which are dear to compute again (see
//                        Kept) stay at the low end. Backward runs the body again, in which those results are
//                        found made, and then goes back through it. All memory taken for that is given back
//                        before backward goes on with the segment before
//
// How much is computed again is one choice (Recompute), from nothing to the whole inside. One thing is never
// kept: a sum with the residual stream (Tape::watch_sum) that the body makes last and returns. So backward
// must not read it.
//
// The body must compute the same results when run twice: states go in and come out as separate tensors.
// Gradients reach the outside only through `inputs` and parameters. A segment inside another is part of it.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "krait/autograd/tape.h"

namespace krait {

using Tensors = std::vector<Tensor>;
using Body = std::function<Tensors(Context&)>;

// What backward computes again of a segment. The bits are the same.
enum class Recompute {
  none,   // nothing: all that is allocated inside is kept
  cheap,  // what is not dear (see Kept)
  layer,  // all: nothing but the results is kept
};

struct SegmentOptions {
  Recompute recompute = Recompute::cheap;
  // Without a tape: the low end is set back to this mark before the results are kept, so that they
  // take the place of inputs that nobody needs any more. So a residual stream needs one buffer, not
  // one for each layer.
  size_t replace_from = SIZE_MAX;
};

// Returns the body's results. `inputs` are the variables from outside that the body reads.
Tensors segment(Context& c, const Tensors& inputs, const Body& body,
                const SegmentOptions& options = {});

// An op opens a Kept before it allocates results that are `dear`: that cost more to compute again
// than to keep. Everything it allocates in this scope is kept, except a sum as above. When the
// segment runs again the op gets the same memory with its contents: Context::planning() is then
// true, so that nothing is computed, and the op records its backward as ever.
class Kept {
 public:
  explicit Kept(Context& c, bool dear = true);
  ~Kept();
  Kept(const Kept&) = delete;
  Kept& operator=(const Kept&) = delete;

 private:
  Context& c_;
  bool opened_;
};

}  // namespace krait
