// Products of a warp on tensor cores, and what feeds them from shared memory. With g = lane / 4, t = lane % 4:
//
//   A (16, 16)   a[0..3]: rows g, g+8, g, g+8, columns 2t and 2t+1, the last two 8 further right
//   B (16, 8)    b[0..1]: rows 2t and 2t+1, the second 8 further down, column g
//   C (16, 8)    c[0..3]: rows g, g, g+8, g+8, columns 2t, 2t+1, 2t, 2t+1
//
// Two C next to each other, rounded to bfloat16, are an A.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

namespace krait::cuda {

// c += a b
__device__ inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c += a b of float32 cut to 11 bits (TF32): A (16, 8) rows g, g+8, g, g+8, columns t, t, t+4, t+4; B (8, 8) rows
// t and t+4, column g.
__device__ inline void mma_tf32(float (&c)[4], const float (&a)[4], float b0, float b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

// Four 8x8 matrices of 16-bit elements; lane 8 i + j names row j of matrix i, 16 aligned bytes.
__device__ inline void load_matrices(uint32_t (&r)[4], const void* row) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}

__device__ inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}

// A from 16 rows of a row-major tile in shared memory, `step` elements apart.
__device__ inline void load_a(uint32_t (&a)[4], const __nv_bfloat16* tile, int step) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  load_matrices(a, tile + lane % 16 * step + lane / 16 * 8);
}

// The same from a tile stored by columns: row k of it holds the 16.
__device__ inline void load_a_columns(uint32_t (&a)[4], const __nv_bfloat16* tile, int step) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  load_matrices_transposed(a, tile + (lane / 16 * 8 + lane % 8) * step + lane / 8 % 2 * 8);
}

// Two B next to each other (b[0..1], b[2..3]), (16 k, 16 n), from a tile stored by columns: row n of it holds
// the k.
__device__ inline void load_b(uint32_t (&b)[4], const __nv_bfloat16* tile, int step) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  load_matrices(b, tile + (lane / 16 * 8 + lane % 8) * step + lane / 8 % 2 * 8);
}

// The same from a tile stored by rows: row k of it holds the n.
__device__ inline void load_b_rows(uint32_t (&b)[4], const __nv_bfloat16* tile, int step) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  load_matrices_transposed(b, tile + (lane / 8 % 2 * 8 + lane % 8) * step + lane / 16 * 8);
}

// Of an 8x8 matrix of which a lane has row g, columns 2t and 2t+1: the transpose, laid out alike.
__device__ inline uint32_t transpose_matrix(uint32_t pair) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
  return transposed;
}

__device__ inline uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}

// A from two C next to each other.
__device__ inline void pack_a(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
  a[0] = pack_bf16(left[0], left[1]);
  a[1] = pack_bf16(left[2], left[3]);
  a[2] = pack_bf16(right[0], right[1]);
  a[3] = pack_bf16(right[2], right[3]);
}

// 16 bytes to shared memory, on their way when the call returns; zeros where not `there`.
__device__ inline void copy_async(void* shared, const void* global, bool there) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(global), "r"(bytes)
               : "memory");
}

// kBytes (4, 8 or 16) of which all are there.
template <int kBytes>
__device__ inline void copy_async(void* shared, const void* global) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(at), "l"(global), "n"(kBytes)
                 : "memory");
  }
}

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all but the last `kOpen` groups of this thread's copies have arrived.
template <int kOpen>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kOpen) : "memory");
}

}  // namespace krait::cuda
