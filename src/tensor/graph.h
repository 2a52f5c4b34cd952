// Work on a GPU recorded once and replayed: the launches, none of the host's code between them.
#pragma once
#include <functional>
#include <utility>

#include "krait/tensor/device.h"

namespace krait {

class Graph {
 public:
  Graph() = default;
  // Records what `work` queues on the stream; none of it runs. `work` must take no memory of the
  // device and wait for nothing. It need not have run before.
  Graph(Device device, Stream stream, const std::function<void()>& work);
  ~Graph();
  Graph(Graph&& o) noexcept : handle_(std::exchange(o.handle_, nullptr)) {}
  Graph& operator=(Graph&& o) noexcept {
    std::swap(handle_, o.handle_);
    return *this;
  }
  explicit operator bool() const { return handle_ != nullptr; }

  void replay(Stream stream) const;

 private:
  void* handle_ = nullptr;
};

// Whether what is queued on the stream becomes part of a graph now.
bool is_recording(Device device, Stream stream);

}  // namespace krait
