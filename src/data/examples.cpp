#include "krait/data/examples.h"

#include <algorithm>
#include <cmath>

#include "krait/base/error.h"
#include "krait/base/threads.h"

namespace krait {

namespace {

// Of what training changes: beside those of the shuffle and of dropout.
constexpr uint64_t kChangesStream = (uint64_t{1} << 62) + (uint64_t{1} << 61);

template <class T>
void append(std::vector<T>& to, const std::vector<T>& more) {
  to.insert(to.end(), more.begin(), more.end());
}

// (L, F) beside (M, F) is (L + M, F); whatever else is stacked.
void collect_values(Batch& batch, const std::vector<Example>& examples) {
  const Shape& first = examples.front().shape;
  for (const Example& e : examples) {
    const bool fits =
        first.rank == 2 ? e.shape.rank == 2 && e.shape[1] == first[1] : e.shape == first;
    require(fits, "examples of one batch: expected values {}, got {}", first, e.shape);
    append(batch.values, e.values);
  }
  if (first.rank == 2) return;
  batch.values_shape = {batch.B, first[0], first[1], first[2]};
}

// One row, in which every example is a sequence from the zero state on.
void pack(Batch& batch, const std::vector<Example>& examples) {
  batch.begin.push_back(0);
  for (const Example& e : examples) {
    const int64_t L = e.values.empty() ? static_cast<int64_t>(e.tokens.size()) : e.shape[0];
    append(batch.tokens, e.tokens);
    batch.begin.push_back(batch.begin.back() + L);
    batch.state_in.push_back(-1);
    batch.state_out.push_back(-1);
  }
  batch.B = 1;
  batch.L = batch.begin.back();
  if (!batch.values.empty()) batch.values_shape = {1, batch.L, examples.front().shape[1]};
}

// read_one(b) is that of row b.
template <class F>
Batch read_rows(int64_t B, const F& read_one) {
  std::vector<Example> read(static_cast<size_t>(B));
  parallel_for(B, [&](int64_t b) { read[static_cast<size_t>(b)] = read_one(b); });
  Batch batch;
  batch.B = B;
  batch.L = 1;
  for (const Example& e : read) {
    if (e.numbers.empty()) batch.targets.push_back(e.label);
    append(batch.numbers, e.numbers);
  }
  batch.n_targets = static_cast<int64_t>(batch.targets.size() + batch.numbers.size());
  batch.targets_shape =
      batch.numbers.empty() ? Shape{batch.B} : Shape{batch.B, batch.n_targets / batch.B};
  if (!read.front().values.empty()) collect_values(batch, read);
  if (batch.values_shape.rank == 0) pack(batch, read);
  return batch;
}

}  // namespace

void require_finite(const Example& e, const std::string& where) {
  const auto bad =
      std::find_if(e.values.begin(), e.values.end(), [](float x) { return !std::isfinite(x); });
  require(bad == e.values.end(), "{}: expected finite numbers, got {} at place {} of {}", where,
          bad == e.values.end() ? 0 : *bad, bad - e.values.begin(), e.shape);
}

Batch read_batch(const Examples& examples, std::span<const int64_t> which) {
  return read_rows(static_cast<int64_t>(which.size()),
                   [&](int64_t b) { return examples.read(which[static_cast<size_t>(b)]); });
}

ExampleBatcher::ExampleBatcher(const Examples& examples, int64_t B, Order order, uint64_t seed)
    : examples_(examples),
      B_(B),
      seed_(seed),
      checksum_(examples.checksum()),
      example_(examples.size(), order, seed) {
  require(examples.size() > 0, "the data has no examples");
}

Batch ExampleBatcher::at(int64_t m) {
  std::vector<int64_t> which;
  for (int64_t b = 0; b < B_; ++b) which.push_back(example_.at(m * B_ + b));
  return read_rows(B_, [&](int64_t b) {
    const auto place = static_cast<uint64_t>(m * B_ + b);
    return examples_.read_for_training(which[static_cast<size_t>(b)],
                                       {seed_, kChangesStream + place});
  });
}

}  // namespace krait
