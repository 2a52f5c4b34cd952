#include "krait/tensor/cpu/convert.h"

#include "krait/base/threads.h"
#include "krait/tensor/cpu/kernels.h"

namespace krait::cpu {

void convert_rows(const Tensor& from, const Tensor& to, bool add) {
  require(from.shape == to.shape && from.row_strided() && to.row_strided(),
          "[convert_rows] expected equal shapes with rows at one distance, got {} and {}",
          from.shape, to.shape);
  const bool narrows = from.dtype == DType::f32 && to.dtype == DType::bf16;
  require(narrows || (from.dtype == DType::bf16 && to.dtype == DType::f32),
          "[convert_rows] expected float32 and bfloat16, got {} and {}", name_of(from.dtype),
          name_of(to.dtype));
  const ConvertKernels& k = KRAIT_PICK_ISA(convert_kernels);
  const bool dense = from.contiguous() && to.contiguous();
  const int64_t cols = dense ? to.numel() : to.size(-1);
  const int64_t rows = cols == 0 ? 0 : to.numel() / cols;
  constexpr int64_t kPiece = 1 << 14;  // elements
  const int64_t rows_a_piece = std::max<int64_t>(1, kPiece / std::max<int64_t>(cols, 1));
  const int64_t across = (cols + kPiece - 1) / kPiece,
                down = (rows + rows_a_piece - 1) / rows_a_piece;
  parallel_for(down * across, [&](int64_t piece) {
    const int64_t j = piece % across * kPiece, n = std::min(kPiece, cols - j);
    const int64_t begin = piece / across * rows_a_piece, end = std::min(rows, begin + rows_a_piece);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t at = r * from.row_stride() + j, put = r * to.row_stride() + j;
      if (narrows) {
        k.f32_to_bf16(static_cast<const float*>(from.data) + at,
                      static_cast<uint16_t*>(to.data) + put, n, add);
      } else {
        k.bf16_to_f32(static_cast<const uint16_t*>(from.data) + at,
                      static_cast<float*>(to.data) + put, n, add);
      }
    }
  });
}

Tensor in_type(Context& c, const Tensor& t, DType type) {
  if (t.dtype == type) return t.detach();
  const Tensor s = c.scratch(t.shape, type);
  if (!c.planning()) convert_rows(t.detach(), s);
  return s;
}

}  // namespace krait::cpu
