#include "krait/tensor/memory.h"

#include <algorithm>
#include <cstring>

#include "krait/base/threads.h"
#include "krait/tensor/cuda/kernels.h"

namespace krait {

constexpr int64_t kGrain = 1 << 16;

void fill(Context& c, const Tensor& dst, float value) {
  require(dst.contiguous(), "fill: expected a contiguous tensor");
  if (c.planning() || dst.numel() == 0) return;
  if (c.device.type == Device::cuda) return KRAIT_WITH_CUDA(cuda::fill(dst, value, c.stream));
  parallel_ranges(dst.numel(), kGrain, [&](int64_t i, int64_t end) {
    if (dst.dtype == DType::bf16) {
      std::fill(dst.as<bf16>() + i, dst.as<bf16>() + end, bf16(value));
    } else {
      std::fill(dst.as<float>() + i, dst.as<float>() + end, value);
    }
  });
}

void copy(Context& c, const Tensor& from, const Tensor& to) {
  require(from.shape == to.shape && from.contiguous() && to.contiguous(),
          "copy: expected contiguous tensors of one shape, got {} and {}", from.shape, to.shape);
  if (c.planning() || from.numel() == 0) return;
  if (c.device.type == Device::cuda) return KRAIT_WITH_CUDA(cuda::convert(from, to, c.stream));
  const auto at = [](const Tensor& t, int64_t i, int64_t end) {
    return Tensor(static_cast<std::byte*>(t.data) + i * static_cast<int64_t>(size_of(t.dtype)), t.dtype, {end - i});
  };
  parallel_ranges(from.numel(), kGrain,
                  [&](int64_t i, int64_t end) { copy_host(at(from, i, end), at(to, i, end)); });
}

}  // namespace krait
