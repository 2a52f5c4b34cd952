// Private to selective_scan: what op.cpp hands to cpu_simd.cpp. Plain structs of pointers.
//
// Channels are cut into blocks of kBlock side by side, never across a border of B/C groups. Inside a
// kernel everything that has a channel axis lies in rows of kBlock floats, padded with zeros.
#pragma once
#include <cstdint>

#include "krait/base/isa.h"
#include "krait/ops/rows.h"

namespace krait::ops::scan {

constexpr int kBlock = 16;      // channels of a block
constexpr int64_t kChunk = 64;  // time steps between two saved states; see selective_scan.h
constexpr int64_t kShort = 8;   // sequences up to here run vectorised over n (scan_step)

// One block of channels of one sequence; for backward its first block, with the others beside it.
struct Block {
  int64_t tokens = 0;
  int channels = 0;  // <= kBlock
  int64_t N = 0;
  bool softplus = true;
  bool constant_B = false, constant_C = false;
  bool complex = false;  // N floats are N/2 pairs
  Rows u, dt, z;         // z.data null: no gate
  Rows B, C;             // of the block's group; constant: float32 rows over channels, stride N
  const float* A2 = nullptr;        // (channels, N): A log2(e); A of complex states
  const float* D = nullptr;         // (channels) or null
  const float* dt_bias = nullptr;   // (channels) or null
  const float* state_in = nullptr;  // (channels, N) or null: zero
};

struct Forward {
  Block block;
  GradRows y;                  // never adds
  float* state_out = nullptr;  // (channels, N) or null
  // The state before step kChunk * c goes to saved + (c - 1) * saved_stride, c >= 1, as rows
  // (N, kBlock). Null: not kept.
  float* saved = nullptr;
  int64_t saved_stride = 0;
  float* scratch = nullptr;  // forward_scratch(N) floats
};

// Per block, summed over time and sequences into what stands there; rows of kBlock floats.
struct Sums {
  float* dA = nullptr;  // (N): d loss / d A
  float* dB = nullptr;  // (N), constant B only
  float* dC = nullptr;  // (N), constant C only
  float* dD = nullptr;  // one row
  float* dt_bias = nullptr;
};

// `blocks` neighbouring blocks of one sequence, `channels` in all. Pointers are those of the first.
struct Backward {
  Block block;
  int blocks = 0;
  int64_t channels = 0;
  Rows dy;  // data null: zero
  GradRows du, ddt, dz;
  // (tokens, N): sum over these channels; null: not wanted, or B is constant
  float* part_dB = nullptr;
  float* part_dC = nullptr;
  const float* dstate_out = nullptr;  // (channels, N) or null: zero
  float* dstate_in = nullptr;         // (channels, N) or null
  const float* saved = nullptr;       // as in Forward; block b at + b * N * kBlock
  int64_t saved_stride = 0;
  float* sums = nullptr;     // block b at + b * sums_size(N)
  float* scratch = nullptr;  // backward_scratch(N, blocks) floats
};

// Sizes in floats. Static, so that no instruction set's copy is used by code for another.
static constexpr int64_t sums_size(int64_t N) { return (3 * N + 2) * kBlock; }
static constexpr int64_t forward_scratch(int64_t N) {
  return 4 * kChunk * kBlock + 4 * N * kBlock + 2 * kChunk * N;
}
static constexpr int kBackwardStates = 8;  // states whose history is kept at once
static constexpr int64_t backward_scratch(int64_t N, int64_t blocks) {
  return 11 * kChunk * kBlock                         // rows of the chunk
         + 2 * kChunk * kBackwardStates * kBlock      // h and decay of the chunk
         + 2 * kChunk * N * kBlock                    // dB and dC as lanes
         + 2 * kChunk * N                             // B and C as float32
         + 3 * N * kBlock + blocks * 2 * N * kBlock;  // h, constant B and C; per block A and dh
}
static constexpr Sums sums_at(float* p, int64_t N) {
  return {p, p + N * kBlock, p + 2 * N * kBlock, p + 3 * N * kBlock, p + (3 * N + 1) * kBlock};
}

struct Kernels {
  // A2[i] = A[i] log2(e), or -exp(A[i]) log2(e) where A holds log(-A).
  void (*scale_A)(const float* A, int64_t n, bool is_log, float* A2);
  void (*scan_chunked)(const Forward&);
  void (*scan_step)(const Forward&);  // tokens <= kShort, not complex
  void (*backward)(const Backward&);
};

}  // namespace krait::ops::scan

namespace krait {
KRAIT_DECLARE_ISA(ops::scan::Kernels, selective_scan_kernels)
}
