// Matrix products on the GPU, with the meaning of krait/tensor/cpu/matmul.h. The one place that knows
// cuBLASLt.
#pragma once
#include "krait/tensor/cpu/matmul.h"
#include "krait/tensor/device.h"

namespace krait::cuda {

using cpu::Matrix;

struct Epilogue {
  const float* bias = nullptr;   // (columns of C), with a float32 C
  bool add = false;              // C += instead of C =
  const Matrix* plus = nullptr;  // float32, C's shape, not C itself; not together with `add`
};

// float32 products are computed in float32 (no TF32), bfloat16 ones with float32 accumulators. The
// algorithm is chosen by the shapes alone, once; nothing is tuned at run time. Queued on the stream.
void matmul(const Matrix& a, const Matrix& b, const Matrix& c, const Epilogue& e, int device,
            Stream stream);

// Before a graph is recorded: takes the memory that products on the device work with, as the first one otherwise does.
void prepare_recorded_products(int device);
// When it has been: `graph`, a cudaGraph_t, clears its products' counters together (see counters.h).
void clear_counters_first(void* graph, int device);

}  // namespace krait::cuda
