#include "krait/train/pass.h"

#include "krait/autograd/tape.h"
#include "krait/tensor/memory.h"

namespace krait {

ops::CrossEntropyResult run_pass(Context& c, const models::Model& model, const models::Feed& feed,
                                 const models::Pass& pass, ops::LossScale scale) {
  // Backward gives the memory of what comes after a layer back, the loss's too: it is kept in front of all.
  const Tensor kept = c.tape ? c.alloc({1}, DType::f32) : Tensor();
  ops::CrossEntropyResult result = model.objective(c, feed, pass, scale);
  if (c.tape) {
    copy(c, result.loss.detach().reshape({1}), kept);
    result.loss = kept;
    c.tape->backward(c);
    if (pass.state_out)  // the tape's variables end here
      for (size_t i = 0; i < pass.state_out->parts().size(); ++i)
        pass.state_out->tensor(i).var = nullptr;
  }
  return result;
}

PlacedBatch place(Context& c, Staging& staging, size_t first_place, const Batch& batch) {
  return {.feed = put(c, staging, batch, first_place),
          .packing = put_packing(c, staging, batch, first_place),
          .B = batch.B,
          .L = batch.L,
          .packed = batch.packed(),
          .carried = batch.carried};
}

ops::CrossEntropyResult run_pass(Context& c, const models::Model& model, const PlacedBatch& batch,
                                 models::Pass pass, ops::LossScale scale) {
  if (batch.packed) pass.packing = &batch.packing;
  if (!batch.carried) pass.state_in = nullptr;
  return run_pass(c, model, batch.feed, pass, scale);
}

}  // namespace krait
