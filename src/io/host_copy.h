// Tensors as they are written to files.
#pragma once
#include <deque>
#include <vector>

#include "krait/tensor/device.h"

namespace krait {

// `t` (contiguous) of any device in the host's memory, as `dtype`: itself, or a copy in one of `buffers`.
inline Tensor on_host_as(DType dtype, const Tensor& t,
                         std::deque<std::vector<std::byte>>& buffers) {
  const Tensor here = on_host(t, buffers.emplace_back());
  if (here.dtype == dtype) return here;
  std::vector<std::byte>& buffer =
      buffers.emplace_back(static_cast<size_t>(t.numel()) * size_of(dtype));
  const Tensor converted(buffer.data(), dtype, t.shape);
  copy_host(here, converted);
  return converted;
}

}  // namespace krait
