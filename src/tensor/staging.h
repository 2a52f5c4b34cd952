// Arrays of the host where ops can read them: as they are on the CPU, for a GPU copied into memory that is
// kept, so that the same place has the same address while what is put there does not grow.
#pragma once
#include <deque>

#include "krait/tensor/context.h"

namespace krait {

class Staging {
 public:
  // `host` (contiguous) on the context's device. What was in that place before is overwritten.
  Tensor put(Context& c, size_t place, const Tensor& host);
  // Where put leaves tensors like this one, whatever they hold.
  Tensor reserve(Context& c, size_t place, const Tensor& like);

 private:
  std::deque<DeviceMemory> places_;
};

}  // namespace krait
