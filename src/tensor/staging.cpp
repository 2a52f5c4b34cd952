#include "krait/tensor/staging.h"

namespace krait {

Tensor Staging::put(Context& c, size_t place, const Tensor& host) {
  const Tensor t = reserve(c, place, host);
  if (t.data != host.data) upload(host.data, t, c.stream);
  return t;
}

Tensor Staging::reserve(Context& c, size_t place, const Tensor& like) {
  if (c.device.type == Device::cpu || c.planning() || !like) return like;
  while (places_.size() <= place) places_.emplace_back();
  DeviceMemory& memory = places_[place];
  if (memory.bytes() < like.bytes()) memory = DeviceMemory(c.device, like.bytes());
  return Tensor(memory.data(), like.dtype, like.shape, c.device);
}

}  // namespace krait
