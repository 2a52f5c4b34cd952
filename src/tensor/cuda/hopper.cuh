// Barriers in shared memory, and what only compute capability 9.0 has, as used by products: tiles copied by
// the tensor memory accelerator, and products of four warps ("a warpgroup") that read both factors from shared memory.
// Tiles have rows of 128 bytes, whose 16-byte places are exchanged by the row (the 128-byte swizzle), and begin at a
// multiple of 1024 bytes. See the PTX manual, "asynchronous warpgroup level matrix instructions".
#pragma once
#include <cuda.h>

#include <cstdint>

// Where sm_90a is what is compiled for.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define KRAIT_HOPPER 1
#else
#define KRAIT_HOPPER 0
#endif

namespace krait::cuda {

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Barriers in shared memory of those that arrive and those that wait, from compute capability 8.0 on. Before others
// use one: a barrier of the block, behind fence_barriers() where the copy engine arrives.
__device__ inline void start_barrier(uint64_t* barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}

__device__ inline void arrive(uint64_t* barrier) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}" ::"r"(
                   shared_address(barrier))
               : "memory");
}

// All lanes of a warp have come this far: each of them says so (kLanes 32), or lane 0 for all (1), which takes less time
// where there are many warps, but racecheck of compute-sanitizer does not follow it.
template <int kLanes>
__device__ inline void warp_arrives(uint64_t* barrier) {
  if constexpr (kLanes == 1) __syncwarp();
  if (threadIdx.x % 32 < kLanes) arrive(barrier);
}

// The lanes for kernels to which that time matters: as many arrivals of each warp its barrier waits for.
#ifdef KRAIT_RACECHECK
constexpr int kArriving = 32;
#else
constexpr int kArriving = 1;
#endif

// Until the phase of this parity has ended.
__device__ inline void wait_for_phase(uint64_t* barrier, unsigned parity) {
#if __CUDA_ARCH__ >= 900
#define KRAIT_WAIT "try_wait"
#else
#define KRAIT_WAIT "test_wait"
#endif
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier." KRAIT_WAIT
      ".parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#undef KRAIT_WAIT
}

#if __CUDA_ARCH__ >= 900

__device__ inline void fence_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrives; the phase ends when so many bytes have come, too.
__device__ inline void arrive_expecting(uint64_t* barrier, unsigned bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

// Runs of bytes in 16s, at addresses in 16s, by the copy engine: into shared memory, counted by the barrier, and out of
// it, in groups. What the block's threads have written is sent behind a fence of theirs.
__device__ inline void copy_run(void* to, const void* from, unsigned bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
// What becomes of a copy's lines in the second-level cache: they stay longest, or are given up first.
__device__ inline uint64_t kept_longest() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ inline uint64_t given_up_first() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ inline void copy_run(void* to, const void* from, unsigned bytes, uint64_t* barrier,
                                uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}
__device__ inline void fence_for_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ inline void send_run(void* to, const void* from, unsigned bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
               "r"(shared_address(from)), "r"(bytes)
               : "memory");
}
__device__ inline void send_run(void* to, const void* from, unsigned bytes, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint "
      "[%0], [%1], %2, %3;" ::"l"(to),
      "r"(shared_address(from)), "r"(bytes), "l"(policy)
      : "memory");
}
__device__ inline void commit_sent() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until shared memory has been read for all but the last `kOpen` groups.
template <int kOpen>
__device__ inline void wait_for_sent_reads() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kOpen) : "memory");
}

#endif

#if KRAIT_HOPPER

// A box of a matrix, its first element in `column` of `row`. Outside of the matrix it is zeros.
__device__ inline void copy_box(void* to, const CUtensorMap& map, int column, int row,
                                uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], [%4];" ::"r"(shared_address(to)),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}

// The same of a matrix whose rows have parts (tensor_map.h).
__device__ inline void copy_box(void* to, const CUtensorMap& map, int column, int part, int row,
                                uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3, %4}], [%5];" ::"r"(shared_address(to)),
      "l"(&map), "r"(column), "r"(part), "r"(row), "r"(shared_address(barrier))
      : "memory");
}

// Back to global memory, as send_run; what lies outside of the matrix is left out.
__device__ inline void send_box(const CUtensorMap& map, int column, int part, int row,
                                const void* from) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(&map),
      "r"(column), "r"(part), "r"(row), "r"(shared_address(from))
      : "memory");
}

// How a warpgroup's product finds a tile of bfloat16 whose rows are K: eight rows are 1024 bytes.
__device__ inline uint64_t tile_at(const void* p) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = uint64_t{1024 >> 4} << 32,
                     kOneColumn = uint64_t{1} << 16;
  return kSwizzle128 | kEightRows | kOneColumn | (shared_address(p) & 0x3ffff) >> 4;
}
constexpr uint64_t kTileStepK = 32 >> 4;  // 16 elements further along K

__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until all but the last `kOpen` groups are done.
template <int kOpen>
__device__ inline void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kOpen) : "memory");
}

// sums += a bᵀ over 16 elements of K: a of 64 rows, b of 2 kSums. Warp w of the four has rows 16w to 16w + 15, laid out
// as in the products of a warp (mma.h), eight columns in every four sums.
#define KRAIT_F4(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define KRAIT_F16(i) KRAIT_F4(i), KRAIT_F4(i + 4), KRAIT_F4(i + 8), KRAIT_F4(i + 12)
// The registers of so many sums; warpgroup.cuh has them, too.
#define KRAIT_R8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define KRAIT_R16 KRAIT_R8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define KRAIT_R20 KRAIT_R16 ",%16,%17,%18,%19"
#define KRAIT_R28 KRAIT_R20 ",%20,%21,%22,%23,%24,%25,%26,%27"
#define KRAIT_R32 KRAIT_R28 ",%28,%29,%30,%31"
#define KRAIT_R36 KRAIT_R32 ",%32,%33,%34,%35"
#define KRAIT_R40 KRAIT_R36 ",%36,%37,%38,%39"
#define KRAIT_R44 KRAIT_R40 ",%40,%41,%42,%43"
#define KRAIT_R48 KRAIT_R44 ",%44,%45,%46,%47"
#define KRAIT_R64 KRAIT_R48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define KRAIT_R80 KRAIT_R64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define KRAIT_R96 KRAIT_R80 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
// kB: kSums + 1, the place of b among the operands, behind a.
#define KRAIT_PRODUCT(kSums, kColumns, kB, ...)                                                  \
  __device__ inline void warpgroup_product(float(&sums)[kSums], uint64_t a, uint64_t b) {        \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #kColumns                                   \
                 "k16.f32.bf16.bf16 {" KRAIT_R##kSums "}, %" #kSums ", %" #kB ", 1, 1, 1, 0, 0;" \
                 : __VA_ARGS__                                                                   \
                 : "l"(a), "l"(b));                                                              \
  }
KRAIT_PRODUCT(8, 16, 9, KRAIT_F4(0), KRAIT_F4(4))
KRAIT_PRODUCT(16, 32, 17, KRAIT_F16(0))
KRAIT_PRODUCT(20, 40, 21, KRAIT_F16(0), KRAIT_F4(16))
KRAIT_PRODUCT(28, 56, 29, KRAIT_F16(0), KRAIT_F4(16), KRAIT_F4(20), KRAIT_F4(24))
KRAIT_PRODUCT(32, 64, 33, KRAIT_F16(0), KRAIT_F16(16))
KRAIT_PRODUCT(36, 72, 37, KRAIT_F16(0), KRAIT_F16(16), KRAIT_F4(32))
KRAIT_PRODUCT(40, 80, 41, KRAIT_F16(0), KRAIT_F16(16), KRAIT_F4(32), KRAIT_F4(36))
KRAIT_PRODUCT(44, 88, 45, KRAIT_F16(0), KRAIT_F16(16), KRAIT_F4(32), KRAIT_F4(36), KRAIT_F4(40))
KRAIT_PRODUCT(48, 96, 49, KRAIT_F16(0), KRAIT_F16(16), KRAIT_F16(32))
KRAIT_PRODUCT(64, 128, 65, KRAIT_F16(0), KRAIT_F16(16), KRAIT_F16(32), KRAIT_F16(48))
KRAIT_PRODUCT(80, 160, 81, KRAIT_F16(0), KRAIT_F16(16), KRAIT_F16(32), KRAIT_F16(48), KRAIT_F16(64))
KRAIT_PRODUCT(96, 192, 97, KRAIT_F16(0), KRAIT_F16(16), KRAIT_F16(32), KRAIT_F16(48), KRAIT_F16(64),
              KRAIT_F16(80))
#undef KRAIT_PRODUCT

// Nothing that reads or writes the sums is moved across it: products would wait for each other.
template <int kCount>
__device__ inline void hold_sums(float (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) asm volatile("" : KRAIT_F4(i)::"memory");
}
#undef KRAIT_F16
#undef KRAIT_F4

#endif

}  // namespace krait::cuda
