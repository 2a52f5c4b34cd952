#include "krait/data/batcher.h"

#include <algorithm>

#include "krait/base/error.h"

namespace krait {

Batch cut_batch(const TokenStream& stream, std::span<const int64_t> starts, int64_t L,
                bool carried) {
  Batch batch;
  batch.B = static_cast<int64_t>(starts.size());
  batch.L = L;
  batch.carried = carried;
  batch.tokens.resize(static_cast<size_t>(batch.B * L));
  batch.targets.assign(batch.tokens.size(), -1);
  batch.targets_shape = {batch.B, L};
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
    : stream_(stream), o_(options), checksum_(stream.checksum()) {
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
  window_ = Reading(windows_, o_.order, o_.seed);
}

Batch Batcher::at(int64_t m) {
  std::vector<int64_t> starts;
  if (!o_.carry_state) {
    for (int64_t b = 0; b < o_.B; ++b) starts.push_back(window_.at(m * o_.B + b) * o_.L);
    return cut_batch(stream_, starts, o_.L, false);
  }
  const int64_t S = windows_ / o_.B, t = m % S;
  for (int64_t b = 0; b < o_.B; ++b) starts.push_back((b * S + t) * o_.L);
  return cut_batch(stream_, starts, o_.L, t > 0);
}

std::string Batcher::description() const {
  return fmt::format("{} tokens in {} documents", stream_.size(), stream_.starts().size());
}

}  // namespace krait
