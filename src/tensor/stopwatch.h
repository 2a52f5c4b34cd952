// How long work takes by the clock of the device that does it.
#pragma once
#include "krait/base/clock.h"
#include "krait/tensor/device.h"

namespace krait {

class Stopwatch {
 public:
  explicit Stopwatch(Device device, Stream stream = nullptr);
  ~Stopwatch();
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  void start();   // behind what the stream holds
  double stop();  // seconds that the work queued since then took; waits for it

 private:
  Device device_;
  Stream stream_;
  void *begin_ = nullptr, *end_ = nullptr;  // of a GPU
  Clock::time_point since_;                 // of the CPU
};

}  // namespace krait
