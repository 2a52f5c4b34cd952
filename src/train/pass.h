// One pass of a model over a batch: what a training step, a validation and their plans all run.
#pragma once
#include "krait/data/batcher.h"
#include "krait/models/language_model.h"

namespace krait {

// scale · Σ cross-entropy; where the context records, its gradients are added to the parameters' as well.
ops::CrossEntropyResult run_pass(Context& c, const models::LanguageModel& model,
                                 const Tensor& tokens, const Tensor& targets,
                                 const models::Pass& pass, float scale);

// The same over a batch, whose arrays go through `staging`: `pass` gets its packing, and its state_in only
// where the batch is carried.
ops::CrossEntropyResult run_pass(Context& c, const models::LanguageModel& model, const Batch& batch,
                                 Staging& staging, models::Pass pass, float scale);

}  // namespace krait
