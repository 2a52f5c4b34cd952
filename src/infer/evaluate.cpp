#include "krait/infer/evaluate.h"

#include <algorithm>
#include <cmath>

namespace krait {

Likelihood::Likelihood(const models::LanguageModel& model, DType activation,
                       std::function<void(std::span<const float>)> each)
    : model_(model),
      each_(std::move(each)),
      reader_(model, activation,
              [this](Context& c, const Tensor& h, const DocumentPass& p) { use(c, h, p); }) {}

void Likelihood::begin() {
  reader_.begin();
  since_zero_ = 0;
}

void Likelihood::add(std::span<const int32_t> tokens) {
  const int64_t positions = model_.config().positions;
  while (!tokens.empty()) {
    if (positions > 0 && since_zero_ == positions) {
      reader_.restart();
      since_zero_ = 0;
      cut_ = true;
    }
    const size_t n = positions > 0
                         ? std::min(tokens.size(), static_cast<size_t>(positions - since_zero_))
                         : tokens.size();
    reader_.add(tokens.first(n));
    since_zero_ += static_cast<int64_t>(n);
    tokens = tokens.subspan(n);
  }
}

void Likelihood::use(Context& c, const Tensor& hidden, const DocumentPass& pass) {
  const Shape shape = {hidden.size(0), hidden.size(1)};
  // While planning there are no targets, only their number.
  const Tensor targets =
      c.planning()
          ? c.alloc(shape, DType::i32)
          : staging_.put(c, 0,
                         Tensor(const_cast<int32_t*>(pass.targets.data()), DType::i32, shape));
  const Tensor on_device = model_.loss(c, hidden, targets, 1.0f).nll;
  if (c.planning()) return;
  std::vector<std::byte> buffer;
  const Tensor nll = on_host(on_device, buffer);
  nll_.clear();
  for (size_t t = 0; t < pass.targets.size(); ++t)
    if (pass.targets[t] >= 0) nll_.push_back(nll.as<float>()[t]);
  for (const float x : nll_) total_ += x;
  predicted_ += static_cast<int64_t>(nll_.size());
  if (each_) each_(nll_);
}

LastWord::LastWord(const models::LanguageModel& model, DType activation)
    : model_(model),
      reader_(model, activation,
              [this](Context& c, const Tensor& h, const DocumentPass& p) { use(c, h, p); }) {}

void LastWord::add(std::span<const int32_t> context, std::span<const int32_t> target) {
  reader_.begin(static_cast<int64_t>(context.size()));
  reader_.add(context);
  reader_.add(target);
  reader_.end();
}

void LastWord::use(Context& c, const Tensor& hidden, const DocumentPass& pass) {
  std::vector<int64_t> places;
  for (int64_t t = 0; t < hidden.shape.rows(); ++t)
    if (c.planning() || pass.targets[static_cast<size_t>(t)] >= 0) places.push_back(t);
  std::vector<bool> right(pass.tokens.size(), true);
  if (!places.empty()) {
    const int64_t valid = model_.config().vocab_size;  // padding is never the best
    each_logits(c, model_, gather_rows(c, hidden, places),
                [&](int64_t first, const Tensor& logits) {
                  for (int64_t i = 0; !c.planning() && i < logits.size(0); ++i) {
                    const auto t = static_cast<size_t>(places[static_cast<size_t>(first + i)]);
                    const float* row = logits.as<float>() + i * logits.size(1);
                    const float* best = std::max_element(row, row + valid);
                    double sum = 0;
                    for (int64_t v = 0; v < logits.size(1); ++v)
                      sum += std::exp(static_cast<double>(row[v] - *best));
                    total_ += std::log(sum) + static_cast<double>(*best - row[pass.targets[t]]);
                    right[t] = best - row == pass.targets[t];
                  }
                });
  }
  auto end = pass.ends.begin();
  for (size_t t = 0; t < pass.tokens.size(); ++t) {
    all_right_ = all_right_ && right[t];
    if (end == pass.ends.end() || static_cast<size_t>(*end) != t) continue;
    ++end;
    ++passages_;
    right_ += all_right_;
    all_right_ = true;
  }
}

}  // namespace krait
