#include "krait/tensor/context.h"

namespace krait {

Tensor Context::alloc(const Shape& shape, DType dtype) {
  require(open_scratch == 0, "Context::alloc inside a Scratch: allocate results first");
  const size_t bytes = static_cast<size_t>(shape.numel()) * size_of(dtype);
  return Tensor(results_at_high_end ? arena->take_high(bytes) : arena->take_low(bytes), dtype,
                shape, device);
}

Tensor Context::scratch(const Shape& shape, DType dtype) {
  require(open_scratch > 0, "Context::scratch needs an open Scratch");
  return Tensor(arena->take_high(static_cast<size_t>(shape.numel()) * size_of(dtype)), dtype, shape,
                device);
}

}  // namespace krait
