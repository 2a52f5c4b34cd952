// The numbers of a step that live on the device.
#pragma once

namespace krait::ops {

// float32 (kStepScalars) on the device.
enum StepScalar {
  kLearningRate,
  kBias1 /* 1-β1^k */,
  kBias2 /* 1-β2^k */,
  kLossScale /* of the step's losses: see LossScale */,
  kClip,
  kGradNorm,
  kStepScalars
};

}  // namespace krait::ops
