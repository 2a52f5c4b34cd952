// How tests run a whole model: planned first, then in an arena of just that size.
#pragma once
#include "krait/autograd/plan.h"

namespace krait::testing {

// `work`, with a tape where `recording`. What it leaves in the arena lives as long as this.
class PlannedRun {
 public:
  PlannedRun(Device device, bool recording, const std::function<void(Context&)>& work)
      : context_(on(device)), bytes(plan(context_, recording, work).bytes), arena_(bytes, device) {
    context_.arena = &arena_;
    if (recording) context_.tape = &tape_;
    work(context_);
  }
  PlannedRun(const PlannedRun&) = delete;
  PlannedRun& operator=(const PlannedRun&) = delete;

 private:
  static Context on(Device device) {
    Context c;
    c.device = device;
    return c;
  }
  Context context_;

 public:
  const size_t bytes;  // as planned

 private:
  Arena arena_;
  Tape tape_;
};

}  // namespace krait::testing
