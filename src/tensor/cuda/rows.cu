#include "krait/tensor/cuda/rows.h"

#include <cuda_bf16.h>

#include <algorithm>

#include "krait/tensor/cuda/launch_dependent.cuh"
#include "krait/tensor/cuda/math.h"
#include "krait/tensor/cuda/sum_slices.cuh"

namespace krait::cuda {

namespace {

constexpr int kThreads = 256;

// A thread converts runs of V elements.
template <class From, class To, int V>
__global__ void convert_kernel(const RowsToConvert r) {
  const int64_t runs = r.cols / V, n = r.rows * runs, step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += step) {
    const int64_t row = r.rows == 1 ? 0 : i / runs, col = (i - row * runs) * V;
    To* const to = static_cast<To*>(r.to) + row * r.to_step + col;
    float x[V], old[V];
    load<V>(static_cast<const From*>(r.from) + row * r.from_step + col, x);
    if (r.add) load<V>(to, old);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      x[v] *= r.factor;
      if (r.add) x[v] += old[v];
    }
    store<V>(to, x);
  }
}

// Of a part of the rows.
template <class T>
__global__ void sum_kernel(const T* rows, int64_t step, int64_t count, int64_t n,
                           int64_t rows_a_part, float* out, bool add) {
  const int64_t col = int64_t{blockIdx.x} * 32 + threadIdx.x;
  const int64_t from = blockIdx.y * rows_a_part;
  sum_column<32>(rows, step, from, min(count, from + rows_a_part), col, n, [&](float total) {
    float* const to_write = out + blockIdx.y * n + col;
    *to_write = add ? __ldcg(to_write) + total : total;
  });
}

template <class T>
void launch_sum(const T* rows, int64_t step, int64_t count, int64_t n, int64_t rows_a_part,
                float* out, bool add, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(n, 32)),
                  static_cast<unsigned>(std::max<int64_t>(1, ceil_div(count, rows_a_part))));
  launch_dependent("sum_rows", sum_kernel<T>, grid, dim3(32, kSumSlices), 0, 1, stream, rows, step,
                   count, n, rows_a_part, out, add);
}

}  // namespace

void convert_rows(const RowsToConvert& given, void* stream) {
  RowsToConvert r = given;
  if (r.rows == 0 || r.cols == 0) return;
  if (r.from_step == r.cols && r.to_step == r.cols) {
    r.cols *= r.rows;
    r.rows = 1;
  }
  const auto launch = [&](auto from, auto to) {
    using From = decltype(from);
    using To = decltype(to);
    const bool fours = r.cols % 4 == 0 &&
                       in_runs(r.from, r.rows == 1 ? 0 : r.from_step, sizeof(From), 4) &&
                       in_runs(r.to, r.rows == 1 ? 0 : r.to_step, sizeof(To), 4);
    const int64_t n = r.rows * r.cols / (fours ? 4 : 1);
    const auto blocks = static_cast<unsigned>(std::min<int64_t>(ceil_div(n, kThreads), 8192));
    (fours
         ? convert_kernel<From, To, 4>
         : convert_kernel<From, To, 1>)<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        r);
  };
  if (r.from_bf16) {
    r.to_bf16 ? launch(__nv_bfloat16(), __nv_bfloat16()) : launch(__nv_bfloat16(), 0.0f);
  } else {
    r.to_bf16 ? launch(0.0f, __nv_bfloat16()) : launch(0.0f, 0.0f);
  }
  check_launch("convert_rows");
}

void sum_rows(const void* rows, bool bf16, int64_t step, int64_t count, int64_t n, float* out,
              bool add, float* parts, void* stream) {
  if (n == 0) return;
  const int64_t P = parts_of_sum(count), rows_each = rows_of_a_part(count);
  float* const first = P > 0 ? parts : out;
  if (bf16) {
    launch_sum(static_cast<const __nv_bfloat16*>(rows), step, count, n, rows_each, first,
               P == 0 && add, stream);
  } else {
    launch_sum(static_cast<const float*>(rows), step, count, n, rows_each, first, P == 0 && add,
               stream);
  }
  if (P > 0) launch_sum(parts, n, P, n, P, out, add, stream);
}

}  // namespace krait::cuda
