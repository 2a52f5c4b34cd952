#include "krait/tensor/stopwatch.h"

#include "krait/tensor/cuda/runtime.h"

namespace krait {

Mark::Mark(Device device) : device_(device) {
  if (device.type == Device::cuda) mark_ = cuda::make_mark(device.index);
}

Mark::~Mark() {
  if (mark_) cuda::destroy_mark(mark_);
}

void Mark::set(Stream stream) {
  if (mark_) cuda::set_mark(mark_, device_.index, stream);
}

void Mark::wait() {
  if (mark_) cuda::wait_for_mark(mark_);
}

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
