// mamba3_scan on the GPU: a block a head of a sequence, chunk by chunk. See cuda_chunk.cuh and cpu_simd.cpp.
#include "krait/ops/mamba3_scan/cuda_head.cuh"

namespace krait::ops::mamba3 {

namespace {

__global__ void __launch_bounds__(kThreads, 2)
    forward_kernel(const CudaCall c, const GradRows y, int64_t floats) {
  for (int64_t item = blockIdx.x; item < c.sequences * c.H; item += gridDim.x) {
    const int64_t h = item % c.H;
    const Sequence s = sequence(c, item / c.H);
    const Head head = head_of(c, s, h);
    Area area{c.scratch + blockIdx.x * floats};
    Chunk chunk(area, Padded(c.size, c.longest));
    const Carry carry(area, chunk.n);
    __syncthreads();
    load_start(head, carry);
    const GradRows y_rows = rows_at(y, s.begin, h * c.size.P);
    float* const saved = saved_at(c, s, h);
    for (int64_t t0 = 0; t0 < s.tokens; t0 += kChunk) {
      if (t0 > 0 && saved)
        save(carry, c.size, saved + (t0 / kChunk - 1) * c.H * saved_size(c.size));
      chunk.prepare(head, t0, min(kChunk, s.tokens - t0), carry);
      sweep_p(chunk, true, carry.M, true, chunk.w, chunk.k, chunk.q, chunk.y);
      chunk.add_own(head.D);
      output_rows(head, chunk, t0, y_rows);
      __syncthreads();
    }
    __syncthreads();
    const StateOf<float> to = state_at<float>(c.to, s.out, h, c);
    if (!to.ssm) continue;
    store_state(carry, c.size, to);
    each(c.size.T, [&](int64_t i) { to.angle[i] = angle_of(carry.turns()[i]); });
  }
}

}  // namespace

// Packed sequences are planned for before it is known how long each is: their blocks have room for a whole chunk.
int64_t cuda_forward_scratch(const CudaCall& c) {
  return std::min(kMostBlocks, c.sequences * c.H) *
         (chunk_floats(c.size, c.begin ? kChunk : c.longest) + carry_floats(c.size));
}

void cuda_forward(const CudaCall& c, const GradRows& y, void* stream) {
  const int64_t blocks = std::min(kMostBlocks, c.sequences * c.H);
  if (blocks == 0) return;
  forward_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      c, y, chunk_floats(c.size, c.longest) + carry_floats(c.size));
  cuda::check_launch("mamba3_scan");
}

}  // namespace krait::ops::mamba3
