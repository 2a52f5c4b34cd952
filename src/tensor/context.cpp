#include "krait/tensor/context.h"

namespace krait {

Tensor Keeper::hand_out(const Shape& shape, DType dtype) {
  require(next < tensors.size() && tensors[next].shape == shape && tensors[next].dtype == dtype,
          "a segment does not do the same when it is run again");
  return tensors[next++];
}

Tensor Context::alloc(const Shape& shape, DType dtype, bool keep) {
  require(open_scratch == 0, "Context::alloc inside a Scratch: allocate results first");
  const bool keeps = keep && keeper && keeper->open;
  if (keeper) ++keeper->taken;
  if (keeps && keeper->again) return keeper->hand_out(shape, dtype);
  const size_t bytes = static_cast<size_t>(shape.numel()) * size_of(dtype);
  const bool high = results_at_high_end && !keeps;
  const Tensor t(high ? arena->take_high(bytes) : arena->take_low(bytes), dtype, shape, device);
  if (keeps) keeper->tensors.push_back(t);
  if (keeper) keeper->last = t.data;
  return t;
}

Tensor Context::scratch(const Shape& shape, DType dtype) {
  require(open_scratch > 0, "Context::scratch needs an open Scratch");
  return Tensor(arena->take_high(static_cast<size_t>(shape.numel()) * size_of(dtype)), dtype, shape,
                device);
}

}  // namespace krait
