#include "krait/autograd/plan.h"

namespace krait {

Plan plan(const Context& like, bool recording, const std::function<void(Context&)>& work) {
  Plan result;
  Arena arena = Arena::planning();
  Tape tape;
  Context c;
  c.device = like.device;
  c.activation = like.activation;
  c.training = like.training;
  c.arena = &arena;
  c.tape = recording ? &tape : nullptr;
  c.costs = &result.costs;
  work(c);
  result.bytes = arena.peak();
  return result;
}

}  // namespace krait
