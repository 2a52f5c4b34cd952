#include "krait/autograd/segment.h"

#include <memory>
#include <utility>

#include "krait/tensor/memory.h"

namespace krait {

// Runs the body with its inside at the high end, unrecorded, and moves the results to where the
// context's own results go.
static Tensors run_and_forget(Context& c, const Body& body, size_t replace_from) {
  const bool outer_high = std::exchange(c.results_at_high_end, true);
  const size_t mark = c.arena->high();
  Tensors inside = body(c);
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

// The bytes of a result that is a sum with the residual stream and lies last in the arena; 0 where
// there is none. They can be given back before the second run: what came after has run backward,
// and the op that made the sum reads its gradient alone.
static size_t bytes_of_last_sum(Context& c, const Tensors& results) {
  const auto* const end = static_cast<const std::byte*>(c.arena->take_low(0));
  for (const Tensor& t : results) {
    const size_t bytes = (t.bytes() + Arena::kAlign - 1) / Arena::kAlign * Arena::kAlign;
    if (t.var && t.var->sum_of && static_cast<const std::byte*>(t.data) + bytes == end)
      return bytes;
  }
  return 0;
}

struct KeptRun {
  Tensors results;
  size_t low = 0;  // end of the arena's low stack without the sum that the second run does not read
};

// The same with a tape, so that the ops allocate as they will in the second run. What they recorded
// is forgotten, what they keep stays where it is.
static KeptRun run_and_keep(Context& c, const Body& body, Keeper& keeper) {
  const Tape::Mark before = c.tape->mark();
  const size_t mark = c.arena->high();
  c.results_at_high_end = true;
  c.keeper = &keeper;
  const Tensors inside = body(c);
  c.keeper = nullptr;
  c.results_at_high_end = false;
  KeptRun run;
  run.low = c.arena->low() - bytes_of_last_sum(c, inside);
  keeper.in_all = keeper.taken;
  for (const Tensor& t : inside)
    if (t.var && t.var->sum_of && t.data == keeper.last) keeper.last_is_unread = true;
  c.tape->forget_since(before);
  for (const Tensor& t : inside) {
    run.results.push_back(t.detach());
    if (!c.arena->taken_high_since(mark, t.data)) continue;
    run.results.back() = c.alloc(t.shape, t.dtype);
    copy(c, t, run.results.back());
  }
  c.arena->set_high(mark);
  return run;
}

Tensors segment(Context& c, const Tensors& inputs, const Body& body,
                const SegmentOptions& options) {
  if (!c.tape) return run_and_forget(c, body, options.replace_from);
  if (c.keeper) return body(c);

  const size_t low = c.arena->low();
  const Philox rng = c.rng;
  const auto keeper = std::make_shared<Keeper>();
  keeper->keeps = options.recompute != Recompute::layer;
  keeper->open = options.recompute == Recompute::none;
  const KeptRun run = run_and_keep(c, body, *keeper);
  Tensors results = run.results;
  for (Tensor& t : results) c.tape->watch(t);
  c.tape->record([=, kept = run.low](Context& b) {
    b.arena->set_low(kept);  // nobody reads the results any more, nor what came after them
    const size_t nodes = b.tape->size();
    const Philox rng_now = std::exchange(b.rng, rng);
    keeper->again = true;
    keeper->taken = 0;
    b.keeper = keeper.get();
    b.tape->watch_reads();
    const Tensors again = body(b);
    b.keeper = nullptr;
    require(keeper->taken == keeper->in_all, "a segment does not do the same when it is run again");
    b.rng = rng_now;
    for (size_t i = 0; i < results.size(); ++i) b.tape->share_grad(b, results[i], again[i]);
    for (const Tensor& t : inputs) b.tape->reserve_grad(b, t);
    b.tape->reserve_read(b);
    const size_t high = b.arena->high();
    b.tape->backward_in_segment(b, nodes);
    b.arena->set_low(low);
    b.arena->set_high(high);
  });
  return results;
}

Kept::Kept(Context& c, bool dear)
    : c_(c), opened_(dear && c.keeper && c.keeper->keeps && !c.keeper->open) {
  if (opened_) c.keeper->open = true;
}

Kept::~Kept() {
  if (opened_) c_.keeper->open = false;
}

}  // namespace krait
