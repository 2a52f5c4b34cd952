// A segment is a stretch of a model whose inside can be forgotten, usually a layer. It gives one rule
// for memory in all three uses of a model:
//
//   inference            the inside lives at the high end and is given back; only the results stay
//   training             as inference going forward, but for what is dear to compute again (see Kept): that
//                        stays at the low end. Backward runs the body again, which finds those results made,
//                        then goes back through it; all memory taken for that is given back, the results before
//                        it begins
//
// How much is computed again is one choice (Recompute), from none of it to the whole inside; never a sum
// (Tape::watch_sum) that the body makes last and returns, so backward must not read it.
//
// The body must compute the same results when run twice: states go in and come out as separate tensors.
// Gradients reach the outside only through `inputs` and parameters. A segment inside another is a part of it.
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
  // Without a tape: the low end is set back to this mark before the results are kept, so that they take
  // the place of inputs which nobody needs any more (a residual stream needs one buffer, not one a layer).
  size_t replace_from = SIZE_MAX;
};

// Returns the body's results. `inputs` are the variables from outside that the body reads.
Tensors segment(Context& c, const Tensors& inputs, const Body& body,
                const SegmentOptions& options = {});

// An op opens one before it allocates its results where they are dear: cost more to compute again than to keep. All
// that it allocates until the end of the scope is kept, but for such a sum. When the segment runs again the op gets the
// same memory, with what it holds, Context::planning() says that nothing is to be computed, and it is recorded as ever.
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
