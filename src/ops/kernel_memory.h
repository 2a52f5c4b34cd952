// What an op hands to the CPU's kernels of a tensor, and of scratch.
#pragma once
#include "krait/base/threads.h"
#include "krait/ops/rows.h"
#include "krait/tensor/context.h"

namespace krait::ops {

// Element (row, column) on of a tensor whose leading axes are rows at one distance.
inline Rows rows_at(const Tensor& t, int64_t row, int64_t column) {
  if (!t) return {};
  const int64_t stride = t.row_stride();
  return {static_cast<const std::byte*>(t.data) +
              (row * stride + column) * static_cast<int64_t>(size_of(t.dtype)),
          stride, t.dtype == DType::bf16};
}

// The same to write: `add`, or overwrite.
inline GradRows to_write(const Rows& r, bool add) {
  return {const_cast<void*>(r.data), r.stride, r.bf16, add};
}

// As many float32 numbers for each thread.
class ThreadScratch {
 public:
  ThreadScratch(Context& c, int64_t floats)
      : nested_(omp_in_parallel()),
        floats_(floats),
        all_(c.scratch({nested_ ? 1 : threads(), floats}, DType::f32)) {}
  float* mine() const { return all_.as<float>() + (nested_ ? 0 : omp_get_thread_num()) * floats_; }

 private:
  bool nested_;  // within a parallel region: for the one thread that asks
  int64_t floats_;
  Tensor all_;
};

}  // namespace krait::ops
