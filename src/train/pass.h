// One pass of a model over a batch: what a training step, a validation and their plans all run.
#pragma once
#include "krait/data/batch.h"

namespace krait {

// A batch on the device; on the CPU it is the Batch that it was made of, which must stay.
struct PlacedBatch {
  models::Feed feed;
  ops::Packing packing;
  bool packed = false, carried = false;
};

// Takes the kPlacesOfBatch places of `staging` from `first_place` on.
PlacedBatch place(Context& c, Staging& staging, size_t first_place, const Batch& batch);

// scale · Σ of the losses; where the context records, its gradients are added to the parameters' as well, or
// left in its arena (nn::Purpose::training_by_batch) until that is reset.
ops::CrossEntropyResult run_pass(Context& c, const models::Model& model, const models::Feed& feed,
                                 const models::Pass& pass, ops::LossScale scale);

// The same over a batch: `pass` gets its packing, and its state_in only where the batch is carried.
ops::CrossEntropyResult run_pass(Context& c, const models::Model& model, const PlacedBatch& batch,
                                 models::Pass pass, ops::LossScale scale);

// See ops::clip_grad_norm; behind the passes of a step, in the same arena.
void clip_gradients(Context& c, const nn::ParamSet& params, float limit, const Tensor& scalars,
                    const Tensor& losses);

}  // namespace krait
