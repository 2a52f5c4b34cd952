// Examples: things that a model judges as a whole (an image, a text, a series), each with the answer or, where a model
// is asked for it, without.
//
// An example is read when it is asked for. A new kind of data is a class of Examples that fills in an Example;
// batches, orders, training and evaluation come with it.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "krait/base/rng.h"
#include "krait/data/batch.h"

namespace krait {

struct Example {
  std::vector<int32_t> tokens;  // a text; or
  std::vector<float> values;    // an image (C, H, W), a series (L, F)
  Shape shape;                  // of values
  int32_t label = -1;           // the class, where it is known; or
  std::vector<float> numbers;   // what is to be predicted
};

// Error naming `where` and the first value that is not finite.
void require_finite(const Example& e, const std::string& where);

class Examples {
 public:
  virtual ~Examples() = default;
  virtual int64_t size() const = 0;
  // Called from several threads. Error names the file and what is wrong with it.
  virtual Example read(int64_t i) const = 0;
  // Where it comes from: a file, or the line of one, "a.jsonl:3".
  virtual std::string name(int64_t i) const = 0;
  // The same as training reads it, where that changes it at random.
  virtual Example read_for_training(int64_t i, const Philox& /*random*/) const { return read(i); }
  virtual std::string description() const = 0;  // "1200 images of 10 classes"
  // Of all of them and their answers, but of what is read when it is asked for only the names.
  virtual uint64_t checksum() const = 0;
};

// A batch of them: images stacked, sequences side by side in one row, packed. Error where they do not fit
// together.
Batch read_batch(const Examples& examples, std::span<const int64_t> which);

// Row b of batch m is the example at place m*B + b of a reading in that order, read for training by random numbers
// of the seed and the place.
class ExampleBatcher : public Batches {
 public:
  // The examples must outlive the batcher.
  ExampleBatcher(const Examples& examples, int64_t B, Order order, uint64_t seed);

  int64_t rows() const override { return examples_.size(); }
  int64_t inputs() const override { return B_; }
  Batch at(int64_t m) override;
  std::string description() const override { return examples_.description(); }
  uint64_t checksum() const override { return checksum_; }

 private:
  const Examples& examples_;
  int64_t B_;
  uint64_t seed_, checksum_;
  Reading example_;
};

}  // namespace krait
