// A state that may be bfloat16, for ops that know it as float32.
#pragma once
#include "krait/tensor/context.h"
#include "krait/tensor/memory.h"

namespace krait::ops {

// run(state), which overwrites the state: where that is not float32, run gets a float32 copy, which is rounded back.
template <class Run>
Tensor with_wide_state(Context& c, const Tensor& state, const Run& run) {
  if (state.dtype == DType::f32) return run(state);
  const Tensor wide = c.alloc(state.shape, DType::f32);
  copy(c, state, wide);
  const Tensor y = run(wide);
  copy(c, wide, state);
  return y;
}

}  // namespace krait::ops
