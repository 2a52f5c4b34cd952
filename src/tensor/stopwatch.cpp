#include "krait/tensor/stopwatch.h"

#include "krait/tensor/cuda/runtime.h"

namespace krait {

Stopwatch::Stopwatch(Device device, Stream stream) : device_(device), stream_(stream) {
  if (device.type == Device::cpu) return;
  begin_ = cuda::make_mark(device.index);
  end_ = cuda::make_mark(device.index);
}

Stopwatch::~Stopwatch() {
  for (void* mark : {begin_, end_})
    if (mark) cuda::destroy_mark(mark);
}

void Stopwatch::start() {
  if (begin_) {
    cuda::set_mark(begin_, device_.index, stream_);
  } else {
    since_ = Clock::now();
  }
}

double Stopwatch::stop() {
  if (!begin_) {
    return seconds_since(since_);
  }
  cuda::set_mark(end_, device_.index, stream_);
  return cuda::seconds_between(begin_, end_);
}

}  // namespace krait
