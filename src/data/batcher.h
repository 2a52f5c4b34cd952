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
#include <cstdint>
#include <span>
#include <vector>

#include "krait/data/tokens.h"
#include "krait/ops/packing.h"
#include "krait/tensor/tensor.h"

namespace krait {

struct Batch {
  int64_t B = 0, L = 0;
  std::vector<int32_t> tokens, targets;  // B * L; target -1: nothing is predicted
  int64_t n_targets = 0;                 // those that are not -1
  bool carried = false;                  // row b goes on from the state in row b

  // The sequences, where rows are not each one sequence.
  std::vector<int64_t> begin;
  std::vector<int32_t> state_in, state_out;
  bool packed() const { return !begin.empty(); }

  // Views, valid while the batch lives unchanged.
  Tensor tokens_view() const;   // (B, L) int32
  Tensor targets_view() const;  // (B, L) int32
  ops::Packing packing() const;
};

// Rows of L tokens from each of `starts`, with the tokens after them as targets.
// `carried`: the first sequence of row b goes on from state row b, unless a document starts there. The
// last sequence of row b leaves its state in row b.
Batch cut_batch(const TokenStream& stream, std::span<const int64_t> starts, int64_t L,
                bool carried);

enum class Order { shuffle, sequential };

struct BatcherOptions {
  int64_t B = 1, L = 1;
  Order order = Order::shuffle;
  bool carry_state = false;  // needs sequential order
  uint64_t seed = 0;
};

class Batcher {
 public:
  // Error where the stream is too short for one window (carry_state: one window for each row). The
  // stream must outlive the batcher.
  Batcher(const TokenStream& stream, const BatcherOptions& options);

  int64_t windows() const { return windows_; }  // read in one epoch
  Batch at(int64_t m);

 private:
  int64_t window(int64_t place);  // place counts rows over epochs

  const TokenStream& stream_;
  BatcherOptions o_;
  int64_t windows_ = 0;
  int64_t shuffled_epoch_ = -1;
  std::vector<int64_t> shuffled_;
};

}  // namespace krait
