// The walk over states on a GPU whose warpgroups take products from shared memory (sm_90a), N up to 128. A warpgroup takes
// a slice of 64 channels, mostly a head, with its states as sums of products; a block one, or two of a group, for which B
// comes once. Transposed throughout: rows are channels, columns tokens or states.
#include "krait/ops/ssd/cuda_matrix_walk.cuh"
#include "krait/ops/ssd/cuda_warpgroup.cuh"

namespace krait::ops::ssd_gpu {

namespace {

template <int kSlices>
constexpr int kBlock = kSlices* kSliceThreads;

// Shared memory: x of the slices and B, twice; the state of each slice on its way out; the steps, twice.
template <int NT, int kSlices>
struct Room {
  static constexpr int kStage = (kSlices + NT) * kTileBytes;
  static constexpr int kOut = NT * kTileBytes;
  static constexpr size_t kSize = 2 * kStage + kSlices * (kOut + 2 * sizeof(ChunkSteps));
  unsigned char *stages, *out;
  ChunkSteps* steps;

  __device__ Room(unsigned char* memory, int part) {
    stages = memory;
    unsigned char* const outs = stages + 2 * kStage;
    out = outs + part * kOut;
    steps = reinterpret_cast<ChunkSteps*>(outs + kSlices * kOut) + 2 * part;
  }
};

// Leaves the state before each chunk.
template <int NT, int kSlices>
__global__ void __launch_bounds__(kBlock<kSlices>, 4 - kSlices)
    warpgroup_walk_kernel(const Walks walks, const int64_t span) {
#if KRAIT_HOPPER
  extern __shared__ __align__(1024) unsigned char memory[];
  constexpr int NP = 64 * NT;
  using R = Room<NT, kSlices>;
  const Walk& w = walks.walk[blockIdx.z];
  const CudaProblem& p = w.p;
  const int thread = static_cast<int>(threadIdx.x), part = thread / kSliceThreads;
  const Course at = Course::of<kSlices>(w, span, part);
  if (!at.there(false)) return cuda::wait_for_previous();
  const int t = at.t, warp = at.warp, lane = lane_of(), t2 = lane % 4 * 2;
  const int N = static_cast<int>(p.N);
  const R room(memory, part);

  const auto stage = [&](int c) { return room.stages + c % 2 * R::kStage; };
  TileReader<kP, kSliceThreads> of_x(p.x, at.row(0), at.column(), t);
  TileReader<NP, kBlock<kSlices>> of_B(p.B, at.row(0), at.group * N, thread);
  const int further = w.backwards ? -kQ : kQ;
  const auto bring_chunk = [&](int c) {
    const int valid = at.valid(c);
    of_x.bring(stage(c) + part * kTileBytes, valid, at.channels);
    of_B.bring(stage(c) + kSlices * kTileBytes, valid, N);
    cuda::commit_copies();
    of_x.go(further), of_B.go(further);
  };
  // The state before a chunk, as tiles: a warp's channels, which it has put there itself.
  const auto leave_state = [&](int c) {
    const int first = 16 * warp * 128 + lane * 16;
    const unsigned char* const from = room.out + first;
    unsigned char* const to = at.state(c) + first;
#pragma unroll
    for (int i = 0; i < R::kOut; i += kTileBytes)
#pragma unroll
      for (int k = i; k < i + 16 * 128; k += 32 * 16)
        *reinterpret_cast<uint4*>(to + k) = *reinterpret_cast<const uint4*>(from + k);
  };

  bring_chunk(0);
  cuda::wait_for_previous();
  cuda::let_next_start();
  float S[NT][8][4] = {};
  auto& all_of_S = reinterpret_cast<float(&)[8 * NT][4]>(S);
  at.begin_state(false, all_of_S);
  WalkSteps steps(at, room.steps, {0, at.chunks});
  for (int c = 0; c < at.chunks; ++c) {
    cuda::wait_for_copies<0>();
    cuda::show_to_products();
    __syncthreads();
    if (c + 1 < at.chunks) bring_chunk(c + 1);
    steps.take(c + 1);
    const ChunkSteps& now = room.steps[c % 2];
    const unsigned char* const x = stage(c) + part * kTileBytes;
    const uint64_t B = cuda::tile_at(stage(c) + kSlices * kTileBytes);

#pragma unroll
    for (int n = 0; n < 4 * NT; ++n) {
      float(&left)[4] = S[n / 4][2 * (n % 4)], (&right)[4] = S[n / 4][2 * (n % 4) + 1];
      uint32_t of_S[4];
      cuda::pack_a(of_S, left, right);
      cuda::store_matrices(
          room.out + n / 4 * kTileBytes + in_tile(16 * warp + lane % 16, n % 4 * 2 + lane / 16),
          of_S);
#pragma unroll
      for (int e = 0; e < 4; ++e) left[e] *= now.through, right[e] *= now.through;
    }
    __syncwarp();
    if (at.channels > 0) leave_state(c);  // early: show_to_products() waits for what is written

    uint32_t channels[4][4], weighted[4][4];  // this warp's channels: its left operands, transposed
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      cuda::load_matrices_transposed(
          channels[k], x + in_tile(16 * k + lane / 16 * 8 + lane % 8, 2 * warp + lane / 8 % 2));
      const float2 w0 = *reinterpret_cast<const float2*>(now.weight + 16 * k + t2);
      const float2 w1 = *reinterpret_cast<const float2*>(now.weight + 16 * k + 8 + t2);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        weighted[k][i] = cuda::pack_bf16(low_bf16(channels[k][i]) * (i < 2 ? w0.x : w1.x),
                                         high_bf16(channels[k][i]) * (i < 2 ? w0.y : w1.y));
    }
    cuda::begin_products();
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int i = 0; i < NT; ++i)
        cuda::product<true, true>(S[i], weighted[k], cuda::further(B, i * kTileBytes + k * 2048));
    cuda::commit_products();
#pragma unroll
    for (int i = 0; i < NT; ++i) cuda::wait_for_products<0>(S[i]);
  }

  at.end_state(false, all_of_S);
#endif
}

template <int NT, int kSlices>
void launch(const Walks& w, int64_t span, cudaStream_t stream) {
  const CudaProblem& p = w.walk[0].p;
  const auto kernel = warpgroup_walk_kernel<NT, kSlices>;
  constexpr size_t kBytes = Room<NT, kSlices>::kSize;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(kBytes));
  const dim3 grid(static_cast<unsigned>(slots(p, span)),
                  static_cast<unsigned>(blocks_of_slices<kSlices>(p)),
                  static_cast<unsigned>(w.count));
  cuda::launch("ssd", !w.first, kernel, grid, kBlock<kSlices>, kBytes, 1, stream, w, span);
}

// Two blocks of two slices fit on a multiprocessor, or three of one. Those of two are for walks that fill most of the card
// with them: else some share a multiprocessor and others have one alone (H200, B8 L2048 H24 backward: 0.267 ms, of one
// slice 0.261).
template <int NT>
void launch(const Walks& w, int64_t span, cudaStream_t stream) {
  constexpr int64_t kMostPairs = 230;  // of 264 that an H200 has room for
  const CudaProblem& p = w.walk[0].p;
  const bool pairs = slots(p, span) * blocks_of_slices<2>(p) * w.count > kMostPairs;
  pairs ? launch<NT, 2>(w, span, stream) : launch<NT, 1>(w, span, stream);
}

}  // namespace

static bool warpgroups_fit(const Walks& w) {
  for (int i = 0; i < w.count; ++i) {
    const Walk& of = w.walk[i];
    if (!warpgroups_fit(of.p) || (of.y.data && !of.y.runs)) return false;
    if (of.states && !states_are_tiles(of.p)) return false;
  }
  return true;
}

bool warpgroups_leave_states(const CudaProblem& p) {
  return p.matrix_units && !p.begin && p.longest > kShort && warpgroups_fit(p) &&
         states_are_tiles(p);
}

bool warpgroups_join(const Walks& w) { return w.walk[0].y.data && warpgroups_fit(w); }

bool warpgroup_walk(const Walks& w, int64_t span, bool first_pass, cudaStream_t stream) {
  const CudaProblem& p = w.walk[0].p;
  if (!warpgroups_fit(w)) return false;
  if (first_pass || w.walk[0].y.data) {
    warpgroup_walk_y(w, span, first_pass, stream);
  } else {
    p.N <= 64 ? launch<1>(w, span, stream) : launch<2>(w, span, stream);
  }
  return true;
}

}  // namespace krait::ops::ssd_gpu
