// sampler: the next token of each row of logits.
//
// In this order: repetition penalty (logits of tokens in the row's history: positive ones divided,
// negative ones multiplied, once a token), temperature (0: the largest logit, lowest id at a tie, and
// none of the following), top-k (lowest ids at a tie), top-p (the smallest set of most probable tokens
// with at least that share of what top-k left), min-p (tokens below min_p times the largest probability
// are dropped), then one draw by counter: Philox(seed, row's stream)(position).
//
//   logits (B, V) float32; ids at or above `valid` (vocabulary padding) are never chosen. -inf: never
//   chosen; NaN, +inf, or nothing but -inf: an error that names the row
//   result: B tokens with log-probabilities of the chosen token under softmax(logits) over valid ids,
//   before penalty and temperature.
//
// A row's result depends on that row alone. The full vocabulary is never sorted: a histogram tells
// which tokens can be among the chosen ones. On a GPU weights are summed in units of 2^-40 of the
// largest.
#pragma once
#include <span>
#include <vector>

#include "krait/tensor/context.h"
#include "krait/tensor/stopwatch.h"

namespace krait::ops {

struct SamplerOptions {
  float temperature = 1.0f;
  int64_t top_k = 0;  // 0: all
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  uint64_t seed = 0;
};

struct SampleRow {
  std::span<const int32_t> history;  // prompt and generated tokens
  uint64_t stream = 0;               // which sequence
  uint64_t position = 0;             // counter of the draw
};

struct Sampled {
  int32_t token = 0;
  float logprob = 0;
};

std::vector<Sampled> sample(Context& c, const Tensor& logits, int64_t valid,
                            const SamplerOptions& o, std::span<const SampleRow> rows);

// Draws on the device, which goes on from them before the host has seen them: only read() waits.
class Sampler {
 public:
  Sampler(Device device, int64_t most_rows);

  // Queues a draw as of sample(). The draw before must have been read.
  void draw(Context& c, const Tensor& logits, int64_t valid, const SamplerOptions& o,
            std::span<const SampleRow> rows);
  // (B) int32 on the device: the tokens of the last draw, for work that is queued behind it. 0 in a
  // row that read() will refuse.
  Tensor tokens() const;
  // Waits for the last draw. Errors are those of sample(); on the CPU draw() throws them.
  std::span<const Sampled> read();

 private:
  Device device_;
  int64_t rows_ = 0;                        // of the last draw
  DeviceMemory tokens_, result_, uniform_;  // the host and the device share the last two
  Mark drawn_;
};

}  // namespace krait::ops
