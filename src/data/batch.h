// What a model reads in one pass, in the host's memory, and where such batches come from.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "krait/models/model.h"
#include "krait/ops/packing.h"

namespace krait {

struct Batch {
  int64_t B = 0, L = 0;          // rows of tokens, or of the vectors of series
  std::vector<int32_t> tokens;   // B * L
  std::vector<float> values;     // of images or series, where there are no tokens
  Shape values_shape;            // images (B, C, H, W); series (B, L, F)
  std::vector<int32_t> targets;  // classes or next tokens; -1: nothing is predicted
  std::vector<float> numbers;    // to be predicted, where there are no classes
  Shape targets_shape;           // of either
  int64_t n_targets = 0;         // those that are not -1
  bool carried = false;          // row b goes on from the state in row b

  // The sequences, where a row is not one sequence.
  std::vector<int64_t> begin;
  std::vector<int32_t> state_in, state_out;
  bool packed() const { return !begin.empty(); }

  // Views, valid while the batch lives unchanged; empty tensors for what the batch does not have.
  models::Feed feed() const;
  ops::Packing packing() const;
};

// The batch, copied to where ops on the context's device can read it. put and put_packing together
// take kPlacesOfBatch places of `staging`, from `first_place` on.
models::Feed put(Context& c, Staging& staging, const Batch& batch, size_t first_place = 0);
// Where `put` will leave batches of the same shapes.
models::Feed reserve_feed(Context& c, Staging& staging, const models::Feed& like,
                          size_t first_place);
ops::Packing put_packing(Context& c, Staging& staging, const Batch& batch, size_t first_place = 0);
constexpr size_t kPlacesOfBatch = 6;

// Batches without end, each a function of its number alone: a run goes on from any position.
class Batches {
 public:
  virtual ~Batches() = default;
  virtual Batch at(int64_t m) = 0;
  virtual int64_t rows() const = 0;             // of all batches of one epoch
  virtual int64_t inputs() const = 0;           // of a batch: tokens, or things judged as a whole
  virtual std::string description() const = 0;  // of the data, "5000 tokens in 3 documents"
  virtual uint64_t checksum() const = 0;        // of the data
};

enum class Order { shuffle, sequential };

// n things read over and over: in order, or in a random order that depends on the seed and the epoch.
class Reading {
 public:
  Reading() = default;
  Reading(int64_t n, Order order, uint64_t seed) : n_(n), order_(order), seed_(seed) {}
  int64_t at(int64_t place);  // place counts over epochs

 private:
  int64_t n_ = 1;
  Order order_ = Order::sequential;
  uint64_t seed_ = 0;
  int64_t shuffled_epoch_ = -1;
  std::vector<int64_t> shuffled_;
};

}  // namespace krait
