// The states of a Mamba-1 or Mamba-2 layer, as ops of one token read and overwrite them.
#pragma once
#include "krait/tensor/tensor.h"

namespace krait::ops {

struct StepStates {
  Tensor conv, ssm;
};

}  // namespace krait::ops
