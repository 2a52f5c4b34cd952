// One pass of a model over a batch: what a training step, a validation and their plans all run.
#pragma once
#include "krait/data/batch.h"

namespace krait {

// scale · Σ of the losses; where the context records, its gradients are added to the parameters' as well.
ops::CrossEntropyResult run_pass(Context& c, const models::Model& model, const models::Feed& feed,
                                 const models::Pass& pass, float scale);

// The same over a batch, whose arrays go through `staging`: `pass` gets its packing, and its state_in only
// where the batch is carried.
ops::CrossEntropyResult run_pass(Context& c, const models::Model& model, const Batch& batch,
                                 Staging& staging, models::Pass pass, float scale);

}  // namespace krait
