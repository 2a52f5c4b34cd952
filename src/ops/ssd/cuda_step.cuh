// Private to ssd: sequences of up to kShort tokens, token after token.
#pragma once
#include "krait/ops/ssd/cuda.h"

namespace krait::ops::ssd_gpu {

// Of the sequences of w those that are so short; an empty one hands its state on.
void step(const CudaForward& w, void* stream);

}  // namespace krait::ops::ssd_gpu
