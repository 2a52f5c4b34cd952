// The counters that some of cuBLASLt's products hand their tiles out by. The library clears a product's counter in
// front of it, in every replay of a graph again, and the product waits: 2 to 4 us of a replay. In a recorded graph
// each product has a counter of its own, and all are cleared together before the graph's first work.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "krait/tensor/device.h"

namespace krait::cuda {

class Counters {
 public:
  static constexpr size_t kBytes = 256;  // of one: the alignment of what the library works in

  explicit Counters(int device);
  // One that no other product of the graph that is being recorded has, unless there are thousands.
  void* next();
  // Where a graph is recorded next, it starts with the first counter.
  void restart() { next_ = 0; }
  // Has the graph clear what it uses of them before all else, instead of where each is used.
  void clear_first(cudaGraph_t graph) const;

 private:
  DeviceMemory memory_;
  size_t next_ = 0;
};

}  // namespace krait::cuda
