#include "krait/data/batcher.h"

#include <algorithm>
#include <numeric>

#include "krait/base/error.h"
#include "krait/base/rng.h"

namespace krait {

// Random streams of the shuffle, one an epoch: away from those of initial values and dropout.
constexpr uint64_t kShuffleStream = uint64_t{1} << 62;

Tensor Batch::tokens_view() const {
  return Tensor(const_cast<int32_t*>(tokens.data()), DType::i32, {B, L});
}

Tensor Batch::targets_view() const {
  return Tensor(const_cast<int32_t*>(targets.data()), DType::i32, {B, L});
}

ops::Packing Batch::packing() const {
  const int64_t n = static_cast<int64_t>(state_in.size());
  ops::Packing p;
  p.n = n;
  for (size_t s = 0; s + 1 < begin.size(); ++s)
    p.longest = std::max(p.longest, begin[s + 1] - begin[s]);
  p.begin = Tensor(const_cast<int64_t*>(begin.data()), DType::i64, {n + 1});
  p.state_in = Tensor(const_cast<int32_t*>(state_in.data()), DType::i32, {n});
  p.state_out = Tensor(const_cast<int32_t*>(state_out.data()), DType::i32, {n});
  return p;
}

Batch cut_batch(const TokenStream& stream, std::span<const int64_t> starts, int64_t L,
                bool carried) {
  Batch batch;
  batch.B = static_cast<int64_t>(starts.size());
  batch.L = L;
  batch.carried = carried;
  batch.tokens.resize(static_cast<size_t>(batch.B * L));
  batch.targets.assign(batch.tokens.size(), -1);
  const std::vector<int64_t>& borders = stream.starts();
  bool simple = true;
  for (int64_t b = 0; b < batch.B; ++b) {
    const int64_t first = starts[static_cast<size_t>(b)], row = b * L;
    stream.read(first, L, batch.tokens.data() + row);
    stream.read(first + 1, std::min(L, stream.size() - first - 1), batch.targets.data() + row);

    const bool fresh = stream.starts_document(first);
    batch.begin.push_back(row);
    batch.state_in.push_back(carried && !fresh ? static_cast<int32_t>(b) : -1);
    simple = simple && !(carried && fresh);
    auto border = std::upper_bound(borders.begin(), borders.end(), first);
    for (; border != borders.end() && *border <= first + L; ++border) {
      batch.targets[static_cast<size_t>(row + *border - first - 1)] = -1;
      if (*border == first + L) break;
      batch.state_out.push_back(-1);
      batch.begin.push_back(row + *border - first);
      batch.state_in.push_back(-1);
      simple = false;
    }
    batch.state_out.push_back(static_cast<int32_t>(b));
  }
  batch.begin.push_back(batch.B * L);
  if (simple) {
    batch.begin.clear();
    batch.state_in.clear();
    batch.state_out.clear();
  }
  batch.n_targets =
      std::count_if(batch.targets.begin(), batch.targets.end(), [](int32_t t) { return t >= 0; });
  return batch;
}

Batcher::Batcher(const TokenStream& stream, const BatcherOptions& options)
    : stream_(stream), o_(options) {
  require(o_.B > 0 && o_.L > 0, "a batch of {} sequences of {} tokens", o_.B, o_.L);
  require(!o_.carry_state || o_.order == Order::sequential,
          "states can only be carried from batch to batch in sequential order");
  windows_ = (stream.size() - 1) / o_.L;
  require(windows_ > 0, "the data has {} tokens, and one sequence of {} with its targets needs {}",
          stream.size(), o_.L, o_.L + 1);
  require(!o_.carry_state || windows_ >= o_.B,
          "the data has {} tokens: carrying the states of {} rows of {} tokens needs {}",
          stream.size(), o_.B, o_.L, o_.B * o_.L + 1);
  require(stream.targets() > 0,
          "the data has only documents of one token: there is nothing to predict");
  if (o_.carry_state) windows_ -= windows_ % o_.B;
}

int64_t Batcher::window(int64_t place) {
  const int64_t epoch = place / windows_, i = place % windows_;
  if (o_.order == Order::sequential) return i;
  if (epoch != shuffled_epoch_) {  // Fisher and Yates, one draw a place
    shuffled_.resize(static_cast<size_t>(windows_));
    std::iota(shuffled_.begin(), shuffled_.end(), 0);
    const Philox rng{o_.seed, kShuffleStream + static_cast<uint64_t>(epoch)};
    for (int64_t k = windows_ - 1; k > 0; --k) {
      const double u = rng.uniform_double(static_cast<uint64_t>(k));
      const int64_t j = std::min(k, static_cast<int64_t>(u * static_cast<double>(k + 1)));
      std::swap(shuffled_[static_cast<size_t>(k)], shuffled_[static_cast<size_t>(j)]);
    }
    shuffled_epoch_ = epoch;
  }
  return shuffled_[static_cast<size_t>(i)];
}

Batch Batcher::at(int64_t m) {
  std::vector<int64_t> starts;
  if (!o_.carry_state) {
    for (int64_t b = 0; b < o_.B; ++b) starts.push_back(window(m * o_.B + b) * o_.L);
    return cut_batch(stream_, starts, o_.L, false);
  }
  const int64_t S = windows_ / o_.B, t = m % S;
  for (int64_t b = 0; b < o_.B; ++b) starts.push_back((b * S + t) * o_.L);
  return cut_batch(stream_, starts, o_.L, t > 0);
}

}  // namespace krait
