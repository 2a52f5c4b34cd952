#include "krait/nn/state.h"

#include <algorithm>

namespace krait::nn {

size_t state_bytes(const std::vector<StatePart>& parts, int64_t capacity, StateTypes types) {
  size_t n = 0;
  for (const StatePart& p : parts)
    n += static_cast<size_t>(p.shape.numel() * (p.per_token ? capacity : 1)) *
         size_of(type_of(p, types));
  return n;
}

bool grows(const std::vector<StatePart>& parts) {
  return std::any_of(parts.begin(), parts.end(), [](const StatePart& p) { return p.per_token; });
}

Shape shape_of(const StatePart& part, int64_t batch, int64_t capacity) {
  Shape out{batch};
  if (part.per_token) out[out.rank++] = capacity;
  for (int i = 0; i < part.shape.rank; ++i) out[out.rank++] = part.shape[i];
  return out;
}

State::State(const std::vector<StatePart>& parts, int64_t batch, int64_t capacity, Device device,
             StateTypes types)
    : parts_(parts), batch_(batch), capacity_(capacity), types_(types) {
  size_t total = 0;
  const auto rounded = [](size_t n) {
    return (n + Arena::kAlign - 1) / Arena::kAlign * Arena::kAlign;
  };
  for (const StatePart& p : parts_)
    total += rounded(static_cast<size_t>(shape_of(p, batch, capacity).numel()) *
                     size_of(type_of(p, types)));
  memory_ = Arena(total, device);
  bytes_ = total;
  void* const begin = memory_.take_low(0);
  for (const StatePart& p : parts_) {
    const Shape s = shape_of(p, batch, capacity);
    const DType type = type_of(p, types);
    const size_t bytes = static_cast<size_t>(s.numel()) * size_of(type);
    tensors_.emplace_back(p.per_token ? memory_.take_high(bytes) : memory_.take_low(bytes), type, s,
                          device);
  }
  fixed_ = Tensor(begin, DType::u8, {static_cast<int64_t>(memory_.low())}, device);
  zero();
}

State State::first(int64_t rows) const {
  State s;
  s.parts_ = parts_;
  s.batch_ = rows;
  s.capacity_ = capacity_;
  s.types_ = types_;
  if (rows == batch_) s.fixed_ = fixed_;
  for (const Tensor& t : tensors_) {
    s.tensors_.push_back(t.slice(0, 0, rows));
    s.bytes_ += s.tensors_.back().bytes();
  }
  return s;
}

State State::clone() const {
  State s(parts_, batch_, capacity_, tensors_.empty() ? Device{} : tensors_[0].device, types_);
  for (size_t i = 0; i < tensors_.size(); ++i) copy_bytes(tensors_[i], s.tensors_[i]);
  return s;
}

void State::reserve(int64_t capacity) {
  if (capacity <= capacity_ || !grows(parts_)) return;
  State larger(parts_, batch_, capacity, tensors_[0].device, types_);
  for (int64_t row = 0; row < batch_; ++row) larger.copy_row(row, *this, row);
  *this = std::move(larger);
}

void State::copy_row(int64_t to, const State& from, int64_t from_row) {
  require(parts_.size() == from.parts_.size(),
          "State::copy_row: the states are of different models");
  const int64_t held = std::min(capacity_, from.capacity_);
  for (size_t i = 0; i < tensors_.size(); ++i) {
    Tensor a = from.tensors_[i].select(0, from_row), b = tensors_[i].select(0, to);
    if (parts_[i].per_token) a = a.slice(0, 0, held), b = b.slice(0, 0, held);
    if (a.dtype == b.dtype) {
      copy_bytes(a, b);
    } else {
      std::vector<std::byte> buffer;
      store(on_host(a, buffer), b);
    }
  }
}

void State::zero() {
  if (fixed_) return zero_bytes(fixed_);
  for (size_t i = 0; i < tensors_.size(); ++i)
    if (!parts_[i].per_token) zero_bytes(tensors_[i]);
}

}  // namespace krait::nn
