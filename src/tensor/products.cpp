#include "krait/tensor/products.h"

#include "krait/tensor/cpu/convert.h"
#include "krait/tensor/cuda/matmul.h"
#include "krait/tensor/cuda/rows.h"

namespace krait {

static cuda::RowsToConvert rows_of(const Tensor& from, const Tensor& to) {
  const int64_t cols = to.size(-1);
  return {.from = from.data,
          .from_bf16 = from.dtype == DType::bf16,
          .from_step = from.row_stride(),
          .to = to.data,
          .to_bf16 = to.dtype == DType::bf16,
          .to_step = to.row_stride(),
          .rows = to.shape.rows(),
          .cols = cols};
}

// A bfloat16 result that is not one product of bfloat16 factors is computed in float32 and rounded once.
static void matmul_on_gpu(Context& c, const Matrix& a, const Matrix& b, const Tensor& result,
                          const cpu::Epilogue& e) {
  const bool through_scratch = result.dtype == DType::bf16 && (a.dtype == DType::f32 || e.bias);
  const Tensor product = through_scratch ? c.scratch(result.shape, DType::f32) : result;
  if (c.planning()) return;
  const bool add = e.add && !through_scratch;
  KRAIT_WITH_CUDA(cuda::matmul(a, b, matrix(product), {.bias = e.bias, .add = add, .plus = e.plus},
                               c.device.index, c.stream));
  if (!through_scratch) return;
  cuda::RowsToConvert rows = rows_of(product, result);
  rows.add = e.add;
  KRAIT_WITH_CUDA(cuda::convert_rows(rows, c.stream));
}

void multiply(Context& c, const Matrix& a, const Matrix& b, const Tensor& result,
              const cpu::Epilogue& e) {
  c.device.type == Device::cuda ? matmul_on_gpu(c, a, b, result, e)
                                : cpu::matmul_into(c, a, b, result, e);
}

Tensor in_type(Context& c, const Tensor& t, DType type) {
  if (c.device.type == Device::cpu || t.dtype == type) return cpu::in_type(c, t, type);
  const Tensor s = c.scratch(t.shape, type);
  if (!c.planning()) KRAIT_WITH_CUDA(cuda::convert_rows(rows_of(t, s), c.stream));
  return s;
}

}  // namespace krait
