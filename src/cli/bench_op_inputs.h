// Random inputs of the cases of `krait bench op`, by the sizes that a width implies.
#pragma once
#include <algorithm>

#include "krait/cli/bench_op_cases.h"

namespace krait::cli {

using Tensors = std::vector<Tensor>;
constexpr int64_t kHead = 64;  // P

inline int64_t width(const OpSizes& s) { return s.model.d_model; }
inline int64_t inner(const OpSizes& s) { return 2 * width(s); }
inline int64_t heads(int64_t channels) { return std::max<int64_t>(1, channels / kHead); }

// (B, L, n) in the type of activations.
inline OpInput rows(const OpSizes& s, int64_t n, double scale = 1, double mean = 0) {
  return {{s.B, s.L, n}, s.dtype, scale, mean};
}
inline OpInput stream(const OpSizes& s) { return {{s.B, s.L, width(s)}, DType::f32}; }
inline OpInput matrix(const OpSizes& s, const Shape& shape) {
  return {shape, s.dtype, 0.03, 0, true};
}
inline OpInput floats(const Shape& shape, double scale = 1, double mean = 0) {
  return {shape, DType::f32, scale, mean, true};
}

}  // namespace krait::cli
