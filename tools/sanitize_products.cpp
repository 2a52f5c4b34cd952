// Preloaded by tools/sanitize for initcheck: fills what a product of cuBLASLt is about to write. Its kernels write by the
// copy engine, which initcheck does not see; without this every result of a product counts as never written.
#include <cublasLt.h>
#include <cuda.h>
#include <dlfcn.h>

#include <cstdint>

namespace {

template <class T>
T attribute(cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t name) {
  T value = {};
  cublasLtMatrixLayoutGetAttribute(layout, name, &value, sizeof value, nullptr);
  return value;
}

}  // namespace

extern "C" cublasStatus_t cublasLtMatmul(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t op, const void* alpha, const void* a,
    cublasLtMatrixLayout_t of_a, const void* b, cublasLtMatrixLayout_t of_b, const void* beta,
    const void* c, cublasLtMatrixLayout_t of_c, void* d, cublasLtMatrixLayout_t of_d,
    const cublasLtMatmulAlgo_t* algo, void* workspace, size_t bytes, cudaStream_t stream) {
  static const auto real =
      reinterpret_cast<decltype(&cublasLtMatmul)>(dlsym(RTLD_NEXT, "cublasLtMatmul"));
  static const auto fill = reinterpret_cast<decltype(&cuMemsetD2D8Async)>(
      dlsym(dlopen("libcuda.so.1", RTLD_LAZY), "cuMemsetD2D8Async"));
  const bool adds = c == d && *static_cast<const float*>(beta) != 0.0f;
  if (!adds) {
    const size_t size =
        attribute<uint32_t>(of_d, CUBLASLT_MATRIX_LAYOUT_TYPE) == CUDA_R_32F ? 4 : 2;
    fill(reinterpret_cast<CUdeviceptr>(d),
         attribute<int64_t>(of_d, CUBLASLT_MATRIX_LAYOUT_LD) * size, 0,
         attribute<uint64_t>(of_d, CUBLASLT_MATRIX_LAYOUT_ROWS) * size,
         attribute<uint64_t>(of_d, CUBLASLT_MATRIX_LAYOUT_COLS), stream);
  }
  return real(handle, op, alpha, a, of_a, b, of_b, beta, c, of_c, d, of_d, algo, workspace, bytes,
              stream);
}
