// Private to this room: the sampler on the GPU.
#pragma once
#include <cstdint>

namespace krait::cuda {

// Where a row is in the random numbers: krait::Philox (base/rng.h).
struct SamplePlace {
  uint64_t stream, position;
};

struct SampleTask {
  const float* logits;
  int64_t stride, valid;  // elements between rows; ids below `valid` may be chosen
  int B;
  float temperature, top_p, min_p, penalty;
  int64_t top_k;
  uint64_t seed;
  SamplePlace* places;           // (B): each is one position further behind the draw
  const int32_t* history;        // of all rows, one behind the other; null without a penalty
  const int64_t* history_begin;  // (B + 1)
  float* penalised;              // scratch (B, valid); null without a penalty
};

// `token` below 0 says what was wrong with a row.
enum SampleError { kHoldsNan = -1, kHoldsInfinity = -2, kHoldsNothing = -3 };
struct alignas(8) SampleOut {
  int32_t token;
  float logprob;
};

// out (2, half), which may be the host's memory: a row at an odd position writes into the second half. tokens (B): those
// drawn, 0 in a row with an error.
void sample(const SampleTask& task, SampleOut* out, int64_t half, int32_t* tokens, void* stream);

}  // namespace krait::cuda
