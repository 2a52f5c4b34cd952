#include "krait/nn/state.h"

namespace krait::nn {

size_t state_bytes(const std::vector<StatePart>& parts) {
  size_t n = 0;
  for (const StatePart& p : parts) n += static_cast<size_t>(p.shape.numel()) * sizeof(float);
  return n;
}

static Shape with_batch(int64_t batch, const Shape& s) {
  Shape out;
  out.rank = s.rank + 1;
  out[0] = batch;
  for (int i = 0; i < s.rank; ++i) out[i + 1] = s[i];
  return out;
}

State::State(const std::vector<StatePart>& parts, int64_t batch, Device device)
    : parts_(parts), batch_(batch) {
  size_t total = 0;
  const auto rounded = [](size_t n) {
    return (n + Arena::kAlign - 1) / Arena::kAlign * Arena::kAlign;
  };
  for (const StatePart& p : parts_)
    total += rounded(static_cast<size_t>(batch * p.shape.numel()) * sizeof(float));
  memory_ = Arena(total, device);
  bytes_ = total;
  for (const StatePart& p : parts_) {
    const Shape s = with_batch(batch, p.shape);
    tensors_.emplace_back(memory_.take_low(static_cast<size_t>(s.numel()) * sizeof(float)),
                          DType::f32, s, device);
    zero_bytes(tensors_.back());
  }
}

State State::first(int64_t rows) const {
  State s;
  s.parts_ = parts_;
  s.batch_ = rows;
  for (const Tensor& t : tensors_) {
    s.tensors_.push_back(t.slice(0, 0, rows));
    s.bytes_ += s.tensors_.back().bytes();
  }
  return s;
}

State State::clone() const {
  State s(parts_, batch_, tensors_.empty() ? Device{} : tensors_[0].device);
  for (size_t i = 0; i < tensors_.size(); ++i) copy_bytes(tensors_[i], s.tensors_[i]);
  return s;
}

void State::copy_row(int64_t to, const State& from, int64_t from_row) {
  require(parts_.size() == from.parts_.size(),
          "State::copy_row: the states are of different models");
  for (size_t i = 0; i < tensors_.size(); ++i)
    copy_bytes(from.tensors_[i].slice(0, from_row, from_row + 1), tensors_[i].slice(0, to, to + 1));
}

void State::zero_row(int64_t row) {
  for (const Tensor& t : tensors_) zero_bytes(t.slice(0, row, row + 1));
}

}  // namespace krait::nn
