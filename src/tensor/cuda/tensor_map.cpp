#include "krait/tensor/cuda/tensor_map.h"

#include <algorithm>

#include "krait/tensor/cuda/check.h"

namespace krait::cuda {

namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's, which the program is not linked with.
Encode find_encode() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault,
                                         &result),
        "looking for cuTensorMapEncodeTiled");
  require(result == cudaDriverEntryPointSuccess && found != nullptr,
          "CUDA: the driver has no cuTensorMapEncodeTiled: expected one for CUDA 12 or newer");
  return reinterpret_cast<Encode>(found);
}

template <size_t kRank>
CUtensorMap map_of(const void* p, const cuuint64_t (&sizes)[kRank],
                   const cuuint64_t (&steps)[kRank - 1], const cuuint32_t (&box)[kRank]) {
  static const Encode encode = find_encode();
  cuuint32_t dense[kRank];
  std::fill(dense, dense + kRank, 1);
  CUtensorMap map{};
  const CUresult r =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, cuuint32_t{kRank}, const_cast<void*>(p), sizes,
             steps, box, dense, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(r == CUDA_SUCCESS, "CUDA: a matrix ({}, {}), {} bytes between rows: no tensor map ({})",
          sizes[kRank - 1], sizes[0], steps[kRank - 2], static_cast<int>(r));
  return map;
}

constexpr cuuint32_t kBoxColumns = 64;

cuuint64_t size(int64_t n) { return static_cast<cuuint64_t>(n); }

}  // namespace

CUtensorMap map_of_rows(const void* p, int64_t rows, int64_t columns, int64_t step, int box_rows) {
  return map_of<2>(p, {size(columns), size(rows)}, {size(2 * step)},
                   {kBoxColumns, static_cast<cuuint32_t>(box_rows)});
}

CUtensorMap map_of_parts(const void* p, int64_t rows, int64_t parts, int64_t columns, int64_t step,
                         int box_rows, int64_t part_step) {
  return map_of<3>(p, {size(columns), size(parts), size(rows)},
                   {size(2 * (part_step > 0 ? part_step : columns)), size(2 * step)},
                   {kBoxColumns, 1, static_cast<cuuint32_t>(box_rows)});
}

CUtensorMap map_of_matrices(const void* p, int64_t count, int64_t rows, int64_t parts,
                            int64_t columns, int box_rows) {
  const int64_t row = 2 * parts * columns;
  return map_of<4>(p, {size(columns), size(parts), size(rows), size(count)},
                   {size(2 * columns), size(row), size(rows * row)},
                   {kBoxColumns, 1, static_cast<cuuint32_t>(box_rows), 1});
}

}  // namespace krait::cuda
