#include "krait/tensor/cuda/tensor_map.h"

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

}  // namespace

CUtensorMap map_of_rows(const void* p, int64_t rows, int64_t columns, int64_t step, int box_rows) {
  static const Encode encode = find_encode();
  constexpr uint32_t kBoxColumns = 64, kDense[] = {1, 1};
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)},
                   steps[] = {static_cast<cuuint64_t>(step) * 2};  // bytes
  const cuuint32_t box[] = {kBoxColumns, static_cast<cuuint32_t>(box_rows)};
  CUtensorMap map{};
  const CUresult r =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(p), sizes, steps, box,
             kDense, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(r == CUDA_SUCCESS,
          "CUDA: a matrix ({}, {}), {} elements between rows: no tensor map ({})", rows, columns,
          step, static_cast<int>(r));
  return map;
}

}  // namespace krait::cuda
