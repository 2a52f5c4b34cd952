#include "krait/infer/document_reader.h"

#include <algorithm>
#include <utility>

namespace krait {

DocumentReader::DocumentReader(const models::LanguageModel& model, DType activation, Use use,
                               int64_t chunk)
    : use_(std::move(use)),
      chunk_(chunk),
      carried_(model.make_state(1, 0, {activation})),
      next_(model.make_state(1, 0, {activation})),
      runner_(model, {activation, chunk, chunk}, [this](Context& c, const Tensor& hidden) {
        use_(c, hidden, c.planning() ? DocumentPass() : pass_);
      }) {}

void DocumentReader::begin(int64_t first_target) {
  first_target_ = std::max<int64_t>(first_target, 1);
  in_document_ = 0;
}

void DocumentReader::add(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) {
    if (in_document_ >= first_target_) targets_.back() = token;
    tokens_.push_back(token);
    targets_.push_back(-1);
    ++in_document_;
    // One more than a pass: the last token of a pass must know the one after it.
    if (static_cast<int64_t>(tokens_.size()) > chunk_) run(chunk_);
  }
}

void DocumentReader::end() {
  restart();
  in_document_ = 0;
}

void DocumentReader::restart() {
  if (in_document_ > 0) ends_.push_back(static_cast<int64_t>(tokens_.size()) - 1);
}

void DocumentReader::finish() {
  if (!tokens_.empty()) run(static_cast<int64_t>(tokens_.size()));
}

void DocumentReader::run(int64_t n) {
  sequences_.clear();
  int64_t begin = 0;
  size_t ended = 0;
  for (; ended < ends_.size() && ends_[ended] < n; ++ended) {
    sequences_.push_back({ends_[ended] + 1 - begin, -1, -1});
    begin = ends_[ended] + 1;
  }
  const bool goes_on = begin < n;
  if (goes_on) sequences_.push_back({n - begin, -1, 0});
  if (continues_) sequences_.front().state_in = 0;
  if (goes_on) {
    carried_tokens_ = n - begin + (continues_ && begin == 0 ? carried_tokens_ : 0);
    if (carried_tokens_ > next_.capacity())
      for (nn::State* s : {&carried_, &next_}) s->reserve(2 * carried_tokens_);
  }

  const auto count = static_cast<size_t>(n);
  pass_ = {{tokens_.data(), count}, {targets_.data(), count}, {ends_.data(), ended}};
  runner_.packed(pass_.tokens, sequences_, carried_, next_);
  std::swap(carried_, next_);

  tokens_seen_ += n;
  continues_ = goes_on;
  tokens_.erase(tokens_.begin(), tokens_.begin() + n);
  targets_.erase(targets_.begin(), targets_.begin() + n);
  ends_.erase(ends_.begin(), ends_.begin() + static_cast<ptrdiff_t>(ended));
  for (int64_t& e : ends_) e -= n;
}

}  // namespace krait
