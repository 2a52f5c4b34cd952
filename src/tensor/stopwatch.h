// Places in a stream's work: waiting for one, and how long work takes by the clock of the device that does it.
#pragma once
#include "krait/base/clock.h"
#include "krait/tensor/device.h"

namespace krait {

// A place in a stream that can be waited for while work behind it goes on.
class Mark {
 public:
  explicit Mark(Device device);
  ~Mark();
  Mark(const Mark&) = delete;
  Mark& operator=(const Mark&) = delete;

  void set(Stream stream);  // behind what the stream holds; the place before is forgotten
  void wait();              // returns at once where it was never set, and on the CPU

 private:
  Device device_;
  void* mark_ = nullptr;  // of a GPU
};

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
