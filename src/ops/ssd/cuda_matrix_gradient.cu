// The gradients of a chunk where products run on matrix units: the formulas of cuda_gradient.cu. A block takes the
// heads of a set one after the other. kParts warps share 16 tokens (a strip): of products over pairs of tokens each
// has every kParts-th 16 columns, of others a part of the columns. Σ over heads of D K Δ is kept, and multiplied with B
// and C once for all of them.
#include "krait/ops/ssd/cuda_matrix_dots.cuh"

namespace krait::ops::ssd_gpu {

namespace {

template <int NT>
struct Room {
  static constexpr int ldN = kLdN<NT>, kPart = 2 * kQ * kLdP + 2 * kP * ldN;
  bf16 *B, *C, *scores, *stages;
  HeadSteps* steps;
  Dots* dots;

  static constexpr size_t size(int stages) {
    return (2 * kQ * ldN + kQ * kLdQ + stages * kPart) * sizeof(bf16) + 3 * sizeof(HeadSteps) +
           2 * sizeof(Dots);
  }
  __device__ Room(unsigned char* memory, int count) {
    B = reinterpret_cast<bf16*>(memory);
    C = B + kQ * ldN, scores = C + kQ * ldN, stages = scores + kQ * kLdQ;
    steps = reinterpret_cast<HeadSteps*>(stages + count * kPart);
    dots = reinterpret_cast<Dots*>(steps + 3);
  }
};

template <int NT>
__global__ void __launch_bounds__(kBlock, 1)
    matrix_gradient_kernel(const Gradient w, const int stages) {
  extern __shared__ __align__(16) unsigned char memory[];
  using R = Room<NT>;
  constexpr int kU = kP / 8 / kParts;  // of channels of a warp, in tiles of 8
  constexpr int NP = 64 * NT, ldN = R::ldN, kTiles = NP / 8 / kParts;  // a warp's states
  constexpr int kGroup = kTiles < 4 ? kTiles : 4;
  const CudaProblem& p = w.p;
  const R room(memory, stages);
  const int N = static_cast<int>(p.N), thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const int strip = warp / kParts, lane = lane_of(), g = lane / 4, t2 = lane % 4 * 2;
  // The order spreads the pairs of tokens over the four units that a multiprocessor has.
  const int part = (warp + (kParts - 1) * strip) % kParts;
  const int t0 = 16 * strip, n0 = NP / kParts * part, i0 = kP / kParts * part;
  const int64_t of_group = w.sets, set = blockIdx.y, group = set / of_group;
  const int64_t first_head = group * (p.H / p.G) + set % of_group * w.heads;
  const int heads = static_cast<int>(min(w.heads, (group + 1) * (p.H / p.G) - first_head));
  const int tiles = static_cast<int>(ceil_div(p.P, kP)), slices = heads * tiles;
  const Place chunk = place_of(p, blockIdx.x, kQ);
  float* const block_sums =
      w.sums ? w.sums + (blockIdx.x * p.H + first_head) * sums_size(p) : nullptr;
  if (!chunk.there) {
    for (int64_t i = thread; block_sums && i < heads * sums_size(p); i += kBlock) block_sums[i] = 0;
    return;
  }
  const int64_t row = chunk.begin;
  const int valid = static_cast<int>(chunk.tokens);
  const auto sums_of = [&](int head) {
    return block_sums ? block_sums + head * sums_size(p) : nullptr;
  };

  CudaRows states, dstates;
  states.data = const_cast<void*>(w.states), dstates.data = const_cast<void*>(w.dstates);
  states.stride = dstates.stride = p.N;
  states.bf16 = states.runs = dstates.bf16 = dstates.runs = true;
  const auto stage = [&](int slice) {
    return room.stages + (stages == 2 ? slice % 2 : 0) * R::kPart;
  };
  int coming = 0, coming_head = 0, coming_p0 = 0;  // the slice that is to be brought next
  const int P = static_cast<int>(p.P), first_column = static_cast<int>(first_head) * P;
  const int64_t first_state = (blockIdx.x * p.H + first_head) * p.P;
  const auto bring_slice = [&] {
    bf16* const x = stage(coming);
    bf16 *const dy = x + kQ * kLdP, *const S = dy + kQ * kLdP, *const dS = S + kP * ldN;
    const int of_head = coming_head * P + coming_p0, channels = min(kP, P - coming_p0);
    const int column = first_column + of_head;
    const int64_t state = first_state + of_head;
    bring_async<kQ, kP, kBlock>(x, kLdP, p.x, row, valid, column, channels, thread);
    bring_async<kQ, kP, kBlock>(dy, kLdP, w.dy, row, valid, column, channels, thread);
    bring_async<kP, NP, kBlock>(S, ldN, states, state, channels, 0, N, thread);
    bring_async<kP, NP, kBlock>(dS, ldN, dstates, state, channels, 0, N, thread);
    cuda::commit_copies();
    ++coming, coming_p0 += kP;
    if (coming_p0 >= P) coming_p0 = 0, ++coming_head;
  };
  const bool keeps_books = warp == kParts - 1;  // one warp finishes the head before
  const int column_B = static_cast<int>(group) * N;
  bring_async<kQ, NP, kBlock>(room.B, ldN, p.B, row, valid, column_B, N, thread);
  bring_async<kQ, NP, kBlock>(room.C, ldN, p.C, row, valid, column_B, N, thread);
  bring_slice();
  HeadStepsReader all_steps(w, first_head, heads, thread, room.steps);
  // Of pairs of tokens, tiles of 16 columns s: every kParts-th from `part` on, where not behind the strip.
  constexpr int kPairs = 4 / kParts;
  float G[kPairs][2][4] = {}, sum_DK[kPairs][2][4] = {};
  float dB[kTiles][4] = {}, dC[kTiles][4] = {};

  for (int slice = 0, head = 0, p0 = 0; slice < slices; ++slice) {
    cuda::wait_for_copies<0>();
    __syncthreads();
    if (stages == 2 && slice + 1 < slices) bring_slice();
    const bool again = p0 > 0;  // a head's further channels
    const int64_t h = first_head + head;
    const int channels = min(kP, P - p0);
    const bf16 *const x = stage(slice), *const dy = x + kQ * kLdP;
    const bf16 *const S = dy + kQ * kLdP, *const dS = S + kP * ldN;
    const HeadSteps& steps = all_steps.of(head);
    Dots& dots = room.dots[head % 2];
    const float D = p.D && !p.D_per_channel ? p.D[h] : 0.0f;
    if (slice == 0)
#pragma unroll 1
      for (int n = 0; n < NP; n += 16) {
        uint32_t a[4], b[4];
        cuda::load_a(a, room.C + t0 * ldN + n, ldN);
#pragma unroll
        for (int k = 0; k < kPairs; ++k) {
          cuda::load_b(b, room.B + 16 * (part + kParts * k) * ldN + n, ldN);
          cuda::mma_bf16(G[k][0], a, b[0], b[1]);
          cuda::mma_bf16(G[k][1], a, b[2], b[3]);
        }
      }
    if (keeps_books && !again && head > 0)
      finish_head(w, all_steps.of(head - 1), room.dots[(head - 1) % 2], h - 1, row, valid,
                  sums_of(head - 1));
    if (!again) all_steps.take(head + 1);

    uint32_t of_dy[4][4];  // (16 tokens, 64 channels)
#pragma unroll
    for (int i = 0; i < 4; ++i) cuda::load_a(of_dy[i], dy + t0 * kLdP + 16 * i, kLdP);
    {
      float left[2] = {}, trace = 0;
      const float log2_t[2] = {steps.log2[t0 + g], steps.log2[t0 + g + 8]};
#pragma unroll
      for (int k = 0; k < kPairs; ++k) {
        const int s16 = part + kParts * k;
        if (s16 > strip) break;
        const bool diagonal = s16 == strip;
        float K[2][4] = {};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          uint32_t b[4];
          cuda::load_b(b, x + 16 * s16 * kLdP + 16 * i, kLdP);
          cuda::mma_bf16(K[0], of_dy[i], b[0], b[1]);
          cuda::mma_bf16(K[1], of_dy[i], b[2], b[3]);
        }
        float W[2][4];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int s = 16 * s16 + 8 * j + t2;
          const float2 log2_s = *reinterpret_cast<const float2*>(steps.log2 + s);
          const float2 delta = *reinterpret_cast<const float2*>(steps.delta + s);
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int t = t0 + g + 8 * r;
            float DG[2];
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              const int e = 2 * r + c;
              if (s + c == t) trace += K[j][e];
              float decay = cuda::exp2_fast(log2_t[r] - (c ? log2_s.y : log2_s.x));
              if (s + c > t) decay = 0;
              DG[c] = decay * G[k][j][e];
              const float DK = decay * K[j][e] * (c ? delta.y : delta.x);
              sum_DK[k][j][e] += DK;
              W[j][e] = G[k][j][e] * DK;
            }
            *reinterpret_cast<uint32_t*>(room.scores + t * kLdQ + s) =
                cuda::pack_bf16(DG[0], DG[1]);
          }
        }
        if (diagonal) {
          float between[2];
          sum_between(W[0], W[1], between);
          trace = sum_of_warp(trace);
          if (lane % 4 == 0) {
            keep(dots.diagonal[t0 + g], between[0], again);
            keep(dots.diagonal[t0 + g + 8], between[1], again);
          }
          if (lane == 0) keep(dots.D[strip], trace, again);
          continue;
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          left[0] += W[j][0] + W[j][1];
          left[1] += W[j][2] + W[j][3];
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            float sum = W[j][c] + W[j][c + 2];
#pragma unroll
            for (int d = 4; d < 32; d *= 2) sum += __shfl_xor_sync(~0u, sum, d);
            if (g == 0) keep(dots.below[strip][16 * s16 + 8 * j + t2 + c], sum, again);
          }
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        left[r] = sum_of_row(left[r]);
        if (lane % 4 == 0) keep(dots.left[part][t0 + g + 8 * r], left[r], again);
      }
    }

    // From the state before the chunk: dC.
    const float before[2] = {steps.before[t0 + g], steps.before[t0 + g + 8]};
    const float after[2] = {steps.after[t0 + g], steps.after[t0 + g + 8]};
    const float delta[2] = {steps.delta[t0 + g], steps.delta[t0 + g + 8]};
    float start[2] = {};
#pragma unroll
    for (int m = 0; m < kTiles; m += kGroup) {
      float d[kGroup][4] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < kGroup; j += 2) {
          uint32_t b[4];
          cuda::load_b_rows(b, S + 16 * i * ldN + n0 + 8 * (m + j), ldN);
          cuda::mma_bf16(d[j], of_dy[i], b[0], b[1]);
          cuda::mma_bf16(d[j + 1], of_dy[i], b[2], b[3]);
        }
#pragma unroll
      for (int j = 0; j < kGroup; ++j)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const uint32_t C = *reinterpret_cast<const uint32_t*>(room.C + (t0 + g + 8 * r) * ldN +
                                                                n0 + 8 * (m + j) + t2);
          const float v0 = before[r] * d[j][2 * r], v1 = before[r] * d[j][2 * r + 1];
          start[r] = fmaf(v0, low_bf16(C), fmaf(v1, high_bf16(C), start[r]));
          dC[m + j][2 * r] += v0, dC[m + j][2 * r + 1] += v1;
        }
    }
    // To the state behind it: dB.
    {
      uint32_t of_x[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) cuda::load_a(of_x[i], x + t0 * kLdP + 16 * i, kLdP);
      const float weight[2] = {delta[0] * after[0], delta[1] * after[1]};
#pragma unroll
      for (int m = 0; m < kTiles; m += kGroup) {
        float d[kGroup][4] = {};
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < kGroup; j += 2) {
            uint32_t b[4];
            cuda::load_b_rows(b, dS + 16 * i * ldN + n0 + 8 * (m + j), ldN);
            cuda::mma_bf16(d[j], of_x[i], b[0], b[1]);
            cuda::mma_bf16(d[j + 1], of_x[i], b[2], b[3]);
          }
#pragma unroll
        for (int j = 0; j < kGroup; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) dB[m + j][e] = fmaf(weight[e / 2], d[j][e], dB[m + j][e]);
      }
    }
    // And u, of the warp's channels.
    float u[kU][4] = {}, end[2] = {}, whole[2] = {};
#pragma unroll
    for (int n = 0; n < NP; n += 16) {
      uint32_t a[4];
      cuda::load_a(a, room.B + t0 * ldN + n, ldN);
#pragma unroll
      for (int j = 0; j < kU; j += 2) {
        uint32_t b[4];
        cuda::load_b(b, dS + (i0 + 8 * j) * ldN + n, ldN);
        cuda::mma_bf16(u[j], a, b[0], b[1]);
        cuda::mma_bf16(u[j + 1], a, b[2], b[3]);
      }
    }
    const auto times_x = [&](float(&sums)[2]) {
#pragma unroll
      for (int j = 0; j < kU; ++j)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const uint32_t pair =
              *reinterpret_cast<const uint32_t*>(x + (t0 + g + 8 * r) * kLdP + i0 + 8 * j + t2);
          sums[r] =
              fmaf(u[j][2 * r], low_bf16(pair), fmaf(u[j][2 * r + 1], high_bf16(pair), sums[r]));
        }
    };
#pragma unroll
    for (int j = 0; j < kU; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) u[j][e] *= after[e / 2];
    times_x(end);
    float across = 0;
#pragma unroll 4
    for (int i = thread; i < kP * NP / 8; i += kBlock) {
      const int at = i / (NP / 8) * ldN + i % (NP / 8) * 8;
      const uint4 a = *reinterpret_cast<const uint4*>(S + at);
      const uint4 b = *reinterpret_cast<const uint4*>(dS + at);
      across += low_bf16(a.x) * low_bf16(b.x) + high_bf16(a.x) * high_bf16(b.x) +
                low_bf16(a.y) * low_bf16(b.y) + high_bf16(a.y) * high_bf16(b.y) +
                low_bf16(a.z) * low_bf16(b.z) + high_bf16(a.z) * high_bf16(b.z) +
                low_bf16(a.w) * low_bf16(b.w) + high_bf16(a.w) * high_bf16(b.w);
    }
    across = sum_of_warp(across);
    if (lane == 0) keep(dots.across[warp], across, again);
    if (p.D_per_channel && block_sums && thread < channels) {
      float sum = 0;
      for (int t = 0; t < kQ; ++t)
        sum = fmaf(static_cast<float>(dy[t * kLdP + thread]),
                   static_cast<float>(x[t * kLdP + thread]), sum);
      sums_of(head)[2 + p0 + thread] = sum;
    }
    __syncthreads();

#pragma unroll
    for (int t16 = 0; t16 < 4; ++t16) {
      if (t16 < strip) continue;
      uint32_t a[4];
      cuda::load_a_columns(a, room.scores + 16 * t16 * kLdQ + t0, kLdQ);
#pragma unroll
      for (int j = 0; j < kU; j += 2) {
        uint32_t b[4];
        cuda::load_b_rows(b, dy + 16 * t16 * kLdP + i0 + 8 * j, kLdP);
        cuda::mma_bf16(u[j], a, b[0], b[1]);
        cuda::mma_bf16(u[j + 1], a, b[2], b[3]);
      }
    }
    times_x(whole);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int t = t0 + g + 8 * r;
      start[r] = sum_of_row(start[r]), end[r] = sum_of_row(end[r]), whole[r] = sum_of_row(whole[r]);
      if (lane % 4 == 0) {
        keep(dots.start[part][t], start[r], again);
        keep(dots.end[part][t], end[r], again);
        keep(dots.u[part][t], whole[r], again);
      }
    }
    if (w.dx.data)
#pragma unroll
      for (int j = 0; j < kU; j += 2) {
        if (i0 + 8 * j >= channels) break;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int t = t0 + g + 8 * r;
          float2 pair[2];
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            const int i = i0 + 8 * (j + k) + t2;
            const uint32_t of_y = *reinterpret_cast<const uint32_t*>(dy + t * kLdP + i);
            float2 skip = {D, D};
            if (p.D_per_channel) skip = *reinterpret_cast<const float2*>(p.D + h * p.P + p0 + i);
            pair[k].x = fmaf(delta[r], u[j + k][2 * r], skip.x * low_bf16(of_y));
            pair[k].y = fmaf(delta[r], u[j + k][2 * r + 1], skip.y * high_bf16(of_y));
          }
          const Four<float2> four = exchange_pairs(pair[0], pair[1]);
          if (t < valid)
            put_four(w.dx, row + t, first_column + head * P + p0 + i0 + 8 * j + four_of_lane(),
                     four);
        }
      }
    if (stages == 1 && slice + 1 < slices) {
      __syncthreads();
      bring_slice();
    }
    p0 += kP;
    if (p0 >= P) p0 = 0, ++head;
  }

  __syncthreads();
  if (keeps_books)
    finish_head(w, all_steps.of(heads - 1), room.dots[(heads - 1) % 2], first_head + heads - 1, row,
                valid, sums_of(heads - 1));
#pragma unroll
  for (int k = 0; k < kPairs; ++k) {
    if (part + kParts * k > strip) break;
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        *reinterpret_cast<uint32_t*>(room.scores + (t0 + g + 8 * r) * kLdQ +
                                     16 * (part + kParts * k) + 8 * j + t2) =
            cuda::pack_bf16(sum_DK[k][j][2 * r], sum_DK[k][j][2 * r + 1]);
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t a[4], b[4];
    if (k <= strip) {
      cuda::load_a(a, room.scores + t0 * kLdQ + 16 * k, kLdQ);
#pragma unroll
      for (int j = 0; j < kTiles; j += 2) {
        cuda::load_b_rows(b, room.B + 16 * k * ldN + n0 + 8 * j, ldN);
        cuda::mma_bf16(dC[j], a, b[0], b[1]);
        cuda::mma_bf16(dC[j + 1], a, b[2], b[3]);
      }
    }
    if (k >= strip) {
      cuda::load_a_columns(a, room.scores + 16 * k * kLdQ + t0, kLdQ);
#pragma unroll
      for (int j = 0; j < kTiles; j += 2) {
        cuda::load_b_rows(b, room.C + 16 * k * ldN + n0 + 8 * j, ldN);
        cuda::mma_bf16(dB[j], a, b[0], b[1]);
        cuda::mma_bf16(dB[j + 1], a, b[2], b[3]);
      }
    }
  }
  put_sums(w, w.dB, set, row, valid, t0, n0, dB);
  put_sums(w, w.dC, set, row, valid, t0, n0, dC);
}

template <int NT>
void launch(const Gradient& w, cudaStream_t stream) {
  const CudaProblem& p = w.p;
  const auto kernel = matrix_gradient_kernel<NT>;
  const int stages = Room<NT>::size(2) <= shared_memory_of_block() ? 2 : 1;
  const size_t bytes = Room<NT>::size(stages);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(bytes));
  const dim3 grid(static_cast<unsigned>(slots(p, kQ)), static_cast<unsigned>(p.G * w.sets));
  kernel<<<grid, kBlock, bytes, stream>>>(w, stages);
  cuda::check_launch("ssd gradients");
}

}  // namespace

bool matrix_units_fit(int64_t N) {
  return (N <= 64    ? Room<1>::size(1)
          : N <= 128 ? Room<2>::size(1)
                     : Room<4>::size(1)) <= shared_memory_of_block();
}

void matrix_gradient(const Gradient& w, cudaStream_t stream) {
  if (warpgroup_gradient(w, stream)) return;
  if (w.p.N <= 64) {
    launch<1>(w, stream);
  } else if (w.p.N <= 128) {
    launch<2>(w, stream);
  } else {
    launch<4>(w, stream);
  }
}

}  // namespace krait::ops::ssd_gpu
