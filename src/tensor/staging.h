// Arrays of the host, made readable for ops: used as they are on the CPU, copied to memory of a
// GPU. A place keeps its address as long as what is put there does not grow, so that recorded work
// can read it.
#pragma once
#include <deque>

#include "krait/tensor/context.h"

namespace krait {

class Staging {
 public:
  // `host` (contiguous) on the context's device. What was in that place before is overwritten.
  Tensor put(Context& c, size_t place, const Tensor& host);
  // The tensor that put(c, place, host) would return for any `host` of this shape and type.
  Tensor reserve(Context& c, size_t place, const Tensor& like);

 private:
  std::deque<DeviceMemory> places_;
};

}  // namespace krait
