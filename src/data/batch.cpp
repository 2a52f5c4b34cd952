#include "krait/data/batch.h"

#include <algorithm>
#include <numeric>

#include "krait/base/rng.h"

namespace krait {

// Random streams of the shuffle, one an epoch: away from those of initial values and dropout.
constexpr uint64_t kShuffleStream = uint64_t{1} << 62;

template <class T>
static Tensor view(const std::vector<T>& v, const Shape& shape) {
  return v.empty() ? Tensor() : Tensor(const_cast<T*>(v.data()), dtype_of<T>(), shape);
}

models::Feed Batch::feed() const {
  models::Feed f;
  f.tokens = view(tokens, {B, L});
  f.values = view(values, values_shape);
  f.targets = numbers.empty() ? view(targets, targets_shape) : view(numbers, targets_shape);
  return f;
}

ops::Packing Batch::packing() const {
  const int64_t n = static_cast<int64_t>(state_in.size());
  ops::Packing p;
  p.n = n;
  for (size_t s = 0; s + 1 < begin.size(); ++s)
    p.longest = std::max(p.longest, begin[s + 1] - begin[s]);
  p.begin = view(begin, {n + 1});
  p.state_in = view(state_in, {n});
  p.state_out = view(state_out, {n});
  return p;
}

models::Feed put(Context& c, Staging& staging, const Batch& batch, size_t first_place) {
  const models::Feed host = batch.feed();
  models::Feed f;
  f.tokens = staging.put(c, first_place, host.tokens);
  f.targets = staging.put(c, first_place + 1, host.targets);
  f.values = staging.put(c, first_place + 2, host.values);
  return f;
}

models::Feed reserve_feed(Context& c, Staging& staging, const models::Feed& like,
                          size_t first_place) {
  models::Feed f;
  f.tokens = staging.reserve(c, first_place, like.tokens);
  f.targets = staging.reserve(c, first_place + 1, like.targets);
  f.values = staging.reserve(c, first_place + 2, like.values);
  return f;
}

ops::Packing put_packing(Context& c, Staging& staging, const Batch& batch, size_t first_place) {
  return ops::put(c, staging, first_place + 3, batch.packing());
}

int64_t Reading::at(int64_t place) {
  const int64_t epoch = place / n_, i = place % n_;
  if (order_ == Order::sequential) return i;
  if (epoch != shuffled_epoch_) {  // Fisher and Yates, one draw a place
    shuffled_.resize(static_cast<size_t>(n_));
    std::iota(shuffled_.begin(), shuffled_.end(), 0);
    const Philox rng{seed_, kShuffleStream + static_cast<uint64_t>(epoch)};
    for (int64_t k = n_ - 1; k > 0; --k) {
      const double u = rng.uniform_double(static_cast<uint64_t>(k));
      const int64_t j = std::min(k, static_cast<int64_t>(u * static_cast<double>(k + 1)));
      std::swap(shuffled_[static_cast<size_t>(k)], shuffled_[static_cast<size_t>(j)]);
    }
    shuffled_epoch_ = epoch;
  }
  return shuffled_[static_cast<size_t>(i)];
}

}  // namespace krait
