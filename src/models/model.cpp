#include "krait/models/model.h"

#include "krait/ops/squared_error/squared_error.h"

namespace krait::models {

ops::CrossEntropyResult loss_of(Context& c, const Tensor& outputs, const Tensor& targets,
                                ops::LossScale scale, float label_smoothing) {
  if (targets.dtype == DType::i32)
    return ops::cross_entropy(c, outputs, targets, scale, label_smoothing);
  return ops::squared_error(c, outputs, targets, scale);
}

ops::CrossEntropyResult Model::objective(Context& c, const Feed& feed, const Pass& pass,
                                         ops::LossScale scale) const {
  return loss_of(c, outputs(c, feed, pass), feed.targets, scale, pass.label_smoothing);
}

}  // namespace krait::models
