#include "krait/tensor/graph.h"

#include "krait/tensor/cuda/runtime.h"

namespace krait {

Graph::Graph(Device device, Stream stream, const std::function<void()>& work) {
  cuda::begin_recording(device.index, stream);
  try {
    work();
  } catch (...) {
    cuda::abandon_recording(stream);
    throw;
  }
  handle_ = cuda::end_recording(device.index, stream);
}

Graph::~Graph() {
  if (handle_) cuda::destroy_graph(handle_);
}

void Graph::replay(Stream stream) const { cuda::launch_graph(handle_, stream); }

bool is_recording(Device device, Stream stream) {
  return device.type == Device::cuda && stream && cuda::is_recording(stream);
}

}  // namespace krait
