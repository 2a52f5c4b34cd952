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
#include <array>
#include <span>
#include <vector>

#include "krait/tensor/context.h"

namespace krait::ops {

struct SamplerOptions {
  float temperature = 1.0f;
  int64_t top_k = 0;  // 0: all
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  uint64_t seed = 0;

  bool operator==(const SamplerOptions&) const = default;
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

  // Queues a draw as of sample(). Draws before that were not read are waited for and forgotten.
  void draw(Context& c, const Tensor& logits, int64_t valid, const SamplerOptions& o,
            std::span<const SampleRow> rows);
  // Whether draw_next() can follow: on a GPU, where no penalty looks at the tokens that were drawn.
  bool goes_on() const;
  // Queues the draw behind the last one: of the same rows, each one position further. The work may be recorded; each time
  // before it is queued expect_next() says so. At most two draws are not read.
  void draw_next(Context& c, const Tensor& logits);
  void expect_next(Stream stream);
  // Of what draw_next() queues: no two are the same where it would differ.
  uint64_t next_id() const { return next_id_; }
  // (B) int32 on the device: the tokens of the last draw, for work that is queued behind it. 0 in a
  // row that read() will refuse.
  Tensor tokens() const;
  // Waits for the first draw that was not read. Errors are those of sample(); on the CPU draw() throws them.
  std::span<const Sampled> read();

 private:
  void queue(Context& c, const Tensor& logits, std::span<const SampleRow> rows);
  Sampled& result_of(int64_t row, uint64_t position) const;

  Device device_;
  int64_t most_rows_, rows_ = 0, valid_ = 0;  // of the last draw, as the options
  SamplerOptions options_;
  uint64_t next_id_ = 0;
  // The host and the device share the results: of draws at even positions, of others, (2, most_rows).
  DeviceMemory tokens_, places_, results_;
  std::vector<std::array<uint64_t, 2>> next_;  // what places_ holds behind what is queued
  int64_t unread_ = 0;                         // draws that are queued
  Stream stream_ = nullptr;
  std::vector<Sampled> sampled_;
};

}  // namespace krait::ops
