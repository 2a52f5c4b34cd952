// What a loss is multiplied by.
#pragma once

namespace krait::ops {

// `factor`, times the float32 that stands at `on_device` when the op runs, where there is one: so that a step
// which was recorded once can have another scale each time.
struct LossScale {
  constexpr LossScale(float f, const float* device = nullptr) : factor(f), on_device(device) {}
  float factor;
  const float* on_device;

  constexpr float value() const { return on_device ? factor * *on_device : factor; }  // there
};

}  // namespace krait::ops
