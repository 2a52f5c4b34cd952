#include "krait/tensor/memory.h"

#include <algorithm>
#include <cstring>

#include "krait/base/threads.h"
#include "krait/tensor/cuda/kernels.h"
#include "krait/tensor/cuda/runtime.h"

namespace krait {

constexpr int64_t kGrain = 1 << 16;

static void fill_on_gpu(Context& c, const Tensor& dst, float value) {
  if (value == 0.0f) return zero_bytes(dst, c.stream);
  if (dst.dtype == DType::bf16) {
    KRAIT_WITH_CUDA(cuda::fill_bfloat16(dst.data, dst.numel(), value, c.stream));
  } else {
    KRAIT_WITH_CUDA(cuda::fill_float32(dst.as<float>(), dst.numel(), value, c.stream));
  }
}

static void copy_on_gpu(Context& c, const Tensor& from, const Tensor& to) {
  if (from.dtype == to.dtype) return copy_bytes(from, to, c.stream);
  if (to.dtype == DType::bf16) {
    KRAIT_WITH_CUDA(cuda::float32_to_bfloat16(from.as<float>(), to.data, from.numel(), c.stream));
  } else {
    KRAIT_WITH_CUDA(
        cuda::bfloat16_to_float32(from.as<bf16>(), to.as<float>(), from.numel(), c.stream));
  }
}

void fill(Context& c, const Tensor& dst, float value) {
  require(dst.contiguous(), "fill: expected a contiguous tensor");
  if (c.planning() || dst.numel() == 0) return;
  if (c.device.type == Device::cuda) return fill_on_gpu(c, dst, value);
  parallel_ranges(dst.numel(), kGrain, [&](int64_t i, int64_t end) {
    if (dst.dtype == DType::bf16) {
      std::fill(dst.as<bf16>() + i, dst.as<bf16>() + end, bf16(value));
    } else {
      std::fill(dst.as<float>() + i, dst.as<float>() + end, value);
    }
  });
}

void zero_rows(Context& c, const Tensor& rows) {
  require(rows.rank() == 2 && rows.row_strided(), "zero_rows: expected rows, got {}", rows.shape);
  if (c.planning() || rows.numel() == 0) return;
  const size_t element = size_of(rows.dtype), bytes = static_cast<size_t>(rows.size(1)) * element,
               step = static_cast<size_t>(rows.row_stride()) * element;
  if (c.device.type == Device::cuda)
    return cuda::zero_rows(rows.data, bytes, step, static_cast<size_t>(rows.size(0)),
                           c.device.index, c.stream);
  parallel_for(rows.size(0), [&](int64_t i) {
    std::memset(static_cast<std::byte*>(rows.data) + static_cast<size_t>(i) * step, 0, bytes);
  });
}

void copy(Context& c, const Tensor& from, const Tensor& to) {
  require(from.shape == to.shape && from.contiguous() && to.contiguous(),
          "copy: expected contiguous tensors of one shape, got {} and {}", from.shape, to.shape);
  if (c.planning() || from.numel() == 0) return;
  if (c.device.type == Device::cuda) return copy_on_gpu(c, from, to);
  const auto at = [](const Tensor& t, int64_t i, int64_t end) {
    return Tensor(static_cast<std::byte*>(t.data) + i * static_cast<int64_t>(size_of(t.dtype)),
                  t.dtype, {end - i});
  };
  parallel_ranges(from.numel(), kGrain,
                  [&](int64_t i, int64_t end) { copy_host(at(from, i, end), at(to, i, end)); });
}

}  // namespace krait
