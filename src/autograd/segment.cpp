#include "krait/autograd/segment.h"

#include <memory>
#include <utility>

#include "krait/tensor/memory.h"

namespace krait {

// Runs the body with its inside at the high end, unrecorded, and moves the results to where the
// context's own results go.
static Tensors run_and_forget(Context& c, const Body& body, size_t replace_from) {
  Tape* const tape = std::exchange(c.tape, nullptr);
  const bool outer_high = std::exchange(c.results_at_high_end, true);
  const size_t mark = c.arena->high();
  const Tensors inside = body(c);
  c.tape = tape;
  c.results_at_high_end = outer_high;
  if (outer_high) return inside;  // the enclosing segment gives the inside back with its own
  if (replace_from != SIZE_MAX) c.arena->set_low(replace_from);
  Tensors results;
  for (const Tensor& t : inside) {
    results.push_back(c.alloc(t.shape, t.dtype));
    if (t.data != results.back().data) copy(c, t, results.back());  // not where it is in place
  }
  c.arena->set_high(mark);
  return results;
}

static Tensors run_recorded(Context& c, const Tensors& inputs, const Body& body) {
  // In backward the node recorded last runs first.
  const auto high = std::make_shared<size_t>(0);
  c.tape->record([high, low = c.arena->low()](Context& b) {
    b.arena->set_high(*high);
    b.arena->set_low(low);
  });
  const Tensors results = body(c);
  c.tape->record([high, inputs](Context& b) {
    for (const Tensor& t : inputs) b.tape->reserve_grad(b, t);
    *high = b.arena->high();
  });
  return results;
}

Tensors segment(Context& c, const Tensors& inputs, const Body& body,
                const SegmentOptions& options) {
  if (!c.tape) return run_and_forget(c, body, options.replace_from);
  if (!options.recompute) return run_recorded(c, inputs, body);

  const Philox rng = c.rng;
  Tensors results = run_and_forget(c, body, SIZE_MAX);
  for (Tensor& t : results) c.tape->watch(t);
  c.tape->record([=](Context& b) {
    const size_t low = b.arena->low(), nodes = b.tape->size();
    const Philox rng_now = std::exchange(b.rng, rng);
    const Tensors again = body(b);
    b.rng = rng_now;
    for (size_t i = 0; i < results.size(); ++i) b.tape->share_grad(b, results[i], again[i]);
    for (const Tensor& t : inputs) b.tape->reserve_grad(b, t);
    const size_t high = b.arena->high();
    b.tape->backward(b, nodes);
    b.arena->set_low(low);
    b.arena->set_high(high);
  });
  return results;
}

}  // namespace krait
