// Batches of a token stream, each a function of its number alone: a run goes on from any position.
//
// Window w of a stream is L inputs from token w*L on, with the same shifted by one as targets; there are
// (tokens - 1) / L windows, and the rest of the stream is not used. Batches are numbered over gradient
// accumulation; batch m of B rows reads in row b
//
//   sequential   window m*B + b
//   shuffle      the window at place m*B + b of a random order that depends on the seed and the epoch
//   carry_state  window m of a stripe: the stream is cut into B stripes of S = windows / B windows, and row b
//                reads stripe b from its start to its end, so that the state of a row at the end of a batch
//                is the one at the start of the next. With B = 1 this is the sequential order.
//
// At the end of the windows (or stripes, where states start from zero again) the next epoch begins.
//
// No target crosses the border of a document (-1 stands in its place), and a Packing keeps states and
// convolution windows apart.
#pragma once
#include <span>

#include "krait/data/batch.h"
#include "krait/data/tokens.h"

namespace krait {

// Rows of L tokens from each of `starts`, with the tokens after them as targets.
// `carried`: the first sequence of row b goes on from state row b, unless a document starts there. The
// last sequence of row b leaves its state in row b.
Batch cut_batch(const TokenStream& stream, std::span<const int64_t> starts, int64_t L,
                bool carried);

struct BatcherOptions {
  int64_t B = 1, L = 1;
  Order order = Order::shuffle;
  bool carry_state = false;  // needs sequential order
  uint64_t seed = 0;
};

class Batcher : public Batches {
 public:
  // Error where the stream is too short for one window (carry_state: one window for each row). The
  // stream must outlive the batcher.
  Batcher(const TokenStream& stream, const BatcherOptions& options);

  int64_t rows() const override { return windows_; }
  int64_t inputs() const override { return o_.B * o_.L; }
  Batch at(int64_t m) override;
  std::string description() const override;
  uint64_t checksum() const override { return checksum_; }

 private:
  const TokenStream& stream_;
  BatcherOptions o_;
  int64_t windows_ = 0;
  uint64_t checksum_;
  Reading window_;
};

}  // namespace krait
