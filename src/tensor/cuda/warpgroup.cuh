// Products of a warpgroup on the tensor cores of compute capability 9.0 beyond those of hopper.cuh: D += A B, with
// A (64, 16), B (16, 32, 64 or 128) in bfloat16, D in float32. The rows of warp w are 16 w and on, and its registers of A
// and D what mma.h says, D as tiles of 8 columns. B, and where not in registers A, lie in tiles of shared memory, by rows
// (rows of memory are those of A or columns of B) or by columns (rows of memory are those of K).
//
// Products run beside the threads. wait_for_products orders them before what reads or changes their registers, and
// begin_products what the threads did to registers before the products; of shared memory that threads wrote themselves,
// they see what came before show_to_products() and a barrier.
#pragma once
#include "krait/tensor/cuda/hopper.cuh"

namespace krait::cuda {

constexpr int kTileBytes = 64 * 128;

// Bytes from the begin of a tile to unit u (8 elements) of a row.
__device__ inline int in_tile(int row, int u) { return row * 128 + (u ^ row % 8) * 16; }

#if KRAIT_HOPPER

// The operand some bytes behind another: 16 further along K are 32 bytes in a tile by rows, 2048 in one by columns.
__device__ inline uint64_t further(uint64_t operand, int bytes) {
  return operand + static_cast<uint64_t>(bytes / 16);
}

// How a product finds B by columns where it has 128: as two tiles, the second so many bytes behind the first.
__device__ inline uint64_t tiles_at(const void* p, int bytes) {
  return (tile_at(p) & ~(uint64_t{0x3fff} << 16)) | static_cast<uint64_t>(bytes / 16) << 16;
}

__device__ inline void show_to_products() { fence_for_copies(); }

// Of warpgroup `i` of a block: all its threads have come here.
__device__ inline void sync_warpgroup(int i) {
  asm volatile("bar.sync %0, 128;" ::"r"(i + 1) : "memory");
}

// Of kCount warps, by a number `i` of their own.
template <int kCount>
__device__ inline void sync_warps(int i) {
  asm volatile("bar.sync %0, %1;" ::"r"(i + 1), "n"(32 * kCount) : "memory");
}

// Registers of each thread of a warpgroup from here on, more or fewer than before: where the kernel branches by what a
// warpgroup does, and says how many blocks a multiprocessor has.
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void leave_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

#define KRAIT_TILE(d, i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define KRAIT_FOUR(d) KRAIT_TILE(d, 0), KRAIT_TILE(d, 1), KRAIT_TILE(d, 2), KRAIT_TILE(d, 3)
#define KRAIT_EIGHT(d) \
  KRAIT_FOUR(d), KRAIT_TILE(d, 4), KRAIT_TILE(d, 5), KRAIT_TILE(d, 6), KRAIT_TILE(d, 7)
#define KRAIT_SIXTEEN(d)                                                                    \
  KRAIT_EIGHT(d), KRAIT_TILE(d, 8), KRAIT_TILE(d, 9), KRAIT_TILE(d, 10), KRAIT_TILE(d, 11), \
      KRAIT_TILE(d, 12), KRAIT_TILE(d, 13), KRAIT_TILE(d, 14), KRAIT_TILE(d, 15)
#define KRAIT_PRODUCT_32 "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" KRAIT_R16 "}, "
#define KRAIT_PRODUCT_64 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" KRAIT_R32 "}, "
#define KRAIT_PRODUCT_128 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" KRAIT_R64 "}, "

// All but the last kOpen groups are done, that of d among them.
template <int kOpen>
__device__ inline void wait_for_products(float (&d)[4][4]) {
  wait_for_products<kOpen>();
  asm volatile("" : KRAIT_FOUR(d)::"memory");
}
template <int kOpen>
__device__ inline void wait_for_products(float (&d)[8][4]) {
  wait_for_products<kOpen>();
  asm volatile("" : KRAIT_EIGHT(d)::"memory");
}
template <int kOpen>
__device__ inline void wait_for_products(float (&d)[16][4]) {
  wait_for_products<kOpen>();
  asm volatile("" : KRAIT_SIXTEEN(d)::"memory");
}

// d = a b, or with kAdd d += a b; d has 32, 64 or 128 columns.
template <bool kAdd, bool kByColumnsB>
__device__ inline void product(float (&d)[4][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %21, 0;\n" KRAIT_PRODUCT_32
               "{%16, %17, %18, %19}, %20, add, 1, 1, %22;\n}"
               : KRAIT_FOUR(d)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAdd), "n"(kByColumnsB));
}
template <bool kAdd, bool kByColumnsB>
__device__ inline void product(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\n" KRAIT_PRODUCT_64
               "{%32, %33, %34, %35}, %36, add, 1, 1, %38;\n}"
               : KRAIT_EIGHT(d)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAdd), "n"(kByColumnsB));
}
template <bool kAdd, bool kByColumnsB>
__device__ inline void product(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %69, 0;\n" KRAIT_PRODUCT_128
               "{%64, %65, %66, %67}, %68, add, 1, 1, %70;\n}"
               : KRAIT_SIXTEEN(d)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAdd), "n"(kByColumnsB));
}
template <bool kAdd, bool kByColumnsA, bool kByColumnsB>
__device__ inline void product(float (&d)[4][4], uint64_t a, uint64_t b) {
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %18, 0;\n" KRAIT_PRODUCT_32
               "%16, %17, add, 1, 1, %19, %20;\n}"
               : KRAIT_FOUR(d)
               : "l"(a), "l"(b), "n"(kAdd), "n"(kByColumnsA), "n"(kByColumnsB));
}
template <bool kAdd, bool kByColumnsA, bool kByColumnsB>
__device__ inline void product(float (&d)[8][4], uint64_t a, uint64_t b) {
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n" KRAIT_PRODUCT_64
               "%32, %33, add, 1, 1, %35, %36;\n}"
               : KRAIT_EIGHT(d)
               : "l"(a), "l"(b), "n"(kAdd), "n"(kByColumnsA), "n"(kByColumnsB));
}
template <bool kAdd, bool kByColumnsA, bool kByColumnsB>
__device__ inline void product(float (&d)[16][4], uint64_t a, uint64_t b) {
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n" KRAIT_PRODUCT_128
               "%64, %65, add, 1, 1, %67, %68;\n}"
               : KRAIT_SIXTEEN(d)
               : "l"(a), "l"(b), "n"(kAdd), "n"(kByColumnsA), "n"(kByColumnsB));
}

// Four 8x8 matrices of 16-bit elements, laid out as load_matrices of mma.h loads them: lane 8 i + j names where row j
// of matrix i goes, 16 aligned bytes; transposed: where its column j goes.
__device__ inline void store_matrices(void* to, const uint32_t (&r)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(to)),
      "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
      : "memory");
}
__device__ inline void store_matrices_transposed(void* to, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(
                   shared_address(to)),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

#undef KRAIT_PRODUCT_128
#undef KRAIT_PRODUCT_64
#undef KRAIT_PRODUCT_32
#undef KRAIT_SIXTEEN
#undef KRAIT_EIGHT
#undef KRAIT_FOUR
#undef KRAIT_TILE
#endif

}  // namespace krait::cuda
