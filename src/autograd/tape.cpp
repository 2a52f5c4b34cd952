#include "krait/autograd/tape.h"

#include <algorithm>
#include <utility>

#include "krait/tensor/memory.h"

namespace krait {

void Tape::watch(Tensor& t) {
  require(t.contiguous(), "Tape::watch: expected a contiguous tensor");
  Var& v = vars_.emplace_back();
  v.whole = t.detach();
  v.grad_dtype = t.dtype;
  t.var = &v;
}

void Tape::watch_sum(Tensor& sum, const Tensor& stream) {
  watch(sum);
  if (!stream.var) return;
  require(stream.shape == sum.shape && stream.numel() == stream.var->whole.numel() &&
              stream.dtype == sum.dtype,
          "Tape::watch_sum: a residual stream is added to as a whole");
  sum.var->sum_of = stream.var;
  stream.var->covered = true;
}

void Tape::uncover(const Tensor& sum) {
  if (sum.var && sum.var->sum_of) sum.var->sum_of->covered = false;
}

void Tape::watch_remade(Tensor& t) {
  watch(t);
  t.var->awaited = true;
}

void Tape::when_remade(const Tensor& t, std::function<void(Context&)> read) {
  t.var->waiting.push_back(std::move(read));
}

void Tape::remade(Context& c, const Tensor& t) {
  t.var->awaited = false;
  for (const auto& read : std::exchange(t.var->waiting, {})) read(c);
}

// The part of the slot's gradient that corresponds to the view `t`.
static Tensor matching_view(Var& v, const Tensor& t) {
  const Tensor& all = v.storage().grad;
  Tensor g = t.detach();
  const int64_t offset =
      (static_cast<const std::byte*>(t.data) - static_cast<const std::byte*>(v.whole.data)) /
      static_cast<int64_t>(size_of(t.dtype));
  g.dtype = all.dtype;
  g.data = static_cast<std::byte*>(all.data) + offset * static_cast<int64_t>(size_of(all.dtype));
  return g;
}

// A view as places [first, second) of every `period` elements of the whole; period 0: it is none.
struct Places {
  int64_t period = 0, first = 0, second = 0;
};

static Places places(const Tensor& whole, const Tensor& t) {
  // covered: elements between steps of the axis to come
  int64_t dense = 1, covered = 1, period = 0;
  for (int i = t.rank() - 1; i >= 0; --i) {
    const int64_t size = t.size(i), stride = t.stride[static_cast<size_t>(i)];
    if (size == 1) continue;
    if (period == 0 && stride == dense) {
      dense *= size;
      covered = dense;
      continue;
    }
    if (period == 0) covered = period = stride;
    if (stride != covered) return {};
    covered *= size;
  }
  if (period == 0) covered = period = whole.numel();
  const int64_t first =
      (static_cast<const std::byte*>(t.data) - static_cast<const std::byte*>(whole.data)) /
      static_cast<int64_t>(size_of(t.dtype));
  if (covered != whole.numel() || first + dense > period) return {};
  return {period, first, first + dense};
}

// Whether the view may overwrite its part of a gradient that is not written as a whole.
bool Tape::take_part(Context& c, Var& v, const Tensor& t) {
  const Places p = places(v.whole, t);
  if (p.period == 0 || (!v.parts.empty() && p.period != v.period)) return false;
  int64_t sum = p.second - p.first;
  for (const auto& [first, second] : v.parts) {
    if (p.first < second && first < p.second) return false;
    sum += second - first;
  }
  context_ = &c;
  v.period = p.period;
  v.parts.emplace_back(p.first, p.second);
  if (sum == p.period) {
    v.parts.clear();
    v.written = true;
  }
  return true;
}

// Zeroes what no view has written.
void Tape::complete(Context& c, Var& v) {
  if (v.written) return;
  if (v.parts.empty()) {
    fill(c, v.grad, 0.0f);
  } else {
    std::sort(v.parts.begin(), v.parts.end());
    v.parts.emplace_back(v.period, v.period);
    const Tensor rows = v.grad.reshape({v.grad.numel() / v.period, v.period});
    int64_t at = 0;
    for (const auto& [first, second] : v.parts) {
      if (at < first) zero_rows(c, rows.slice(1, at, first));
      at = second;
    }
    v.parts.clear();
  }
  v.written = true;
}

Tensor Tape::grad(const Tensor& t) {
  if (!t.var) return {};
  if (Var& v = t.var->storage(); !v.written) {
    if (v.parts.empty()) return {};
    complete(*context_, v);
  }
  require(!t.var->covered, "a residual stream was used after something was added to it");
  return matching_view(*t.var, t);
}

void Tape::reserve_grad(Context& c, const Tensor& t) {
  if (!t.var) return;
  Var& v = t.var->storage();
  if (v.grad) return;
  require(c.open_scratch == 0, "Tape: a gradient is first asked for inside a Scratch");
  require(!v.lasting || !in_segment_,
          "Tape: a segment uses a parameter that none of its ops said it reads");
  const size_t bytes = static_cast<size_t>(v.whole.numel()) * size_of(v.grad_dtype);
  v.grad = Tensor(c.arena->take_high(bytes), v.grad_dtype, v.whole.shape, v.whole.device);
}

void Tape::keep_in_arena(Var& parameter) {
  parameter.lasting = true;
  lasting_.push_back(&parameter);
}

void Tape::watch_reads() {
  for (Var* const v : lasting_) v->read = false;
}

void Tape::reserve_read(Context& c) {
  for (Var* const v : lasting_) {
    Tensor whole = v->whole;
    whole.var = v;
    if (v->read) reserve_grad(c, whole);
  }
}

void Tape::backward_in_segment(Context& c, size_t keep) {
  in_segment_ = true;
  backward(c, keep);
  in_segment_ = false;
}

GradTarget Tape::grad_into(Context& c, const Tensor& t) {
  if (!t.var) return {};
  require(!t.var->covered, "a residual stream was used after something was added to it");
  Var& v = t.var->storage();
  const bool reserved = static_cast<bool>(v.grad);  // as parameters' are, which all read as a whole
  reserve_grad(c, t);
  bool add = true;
  if (!v.written && v.parts.empty() && t.numel() == v.whole.numel()) {
    v.written = true;
    add = false;
  } else if (!v.written && (!reserved || !v.parts.empty()) && take_part(c, v, t)) {
    add = false;
  } else {
    complete(c, v);
  }
  v.rounds = false;
  return {matching_view(*t.var, t), add};
}

Tensor Tape::round_into(Context& c, const Tensor& t) {
  if (!t.var) return {};
  Var& v = t.var->storage();
  if (v.grad_dtype != DType::f32 || t.numel() != v.whole.numel()) return {};
  if (!v.rounded) {
    if (in_segment_) return {};  // the segment would give it back while the slot lives on
    require(c.open_scratch == 0, "Tape: room for a gradient is first asked for inside a Scratch");
    const size_t bytes = static_cast<size_t>(v.whole.numel()) * size_of(DType::bf16);
    v.rounded = Tensor(c.arena->take_high(bytes), DType::bf16, v.whole.shape, v.whole.device);
  }
  v.rounds = true;
  return v.rounded.reshape(t.shape);
}

Tensor Tape::rounded_grad(const Tensor& t) const {
  if (!t.var || !t.var->storage().rounds || t.numel() != t.var->whole.numel()) return {};
  return t.var->storage().rounded.reshape(t.shape);
}

void Tape::share_grad(Context& c, const Tensor& from, const Tensor& to) {
  if (!to.var || !grad(from)) return;
  Var& source = from.var->storage();
  Var& target = to.var->storage();
  require(!target.written, "Tape::share_grad: the target has a gradient already");
  const Tensor shared = source.grad.reshape(target.whole.shape);
  if (target.grad) {
    copy(c, shared, target.grad);
  } else {
    target.grad = shared;
  }
  target.written = true;
  target.rounded = source.rounded;
  target.rounds = source.rounds;
}

void Tape::seed(Context& c, const Tensor& loss, float value) {
  const GradTarget g = grad_into(c, loss);
  require(static_cast<bool>(g.grad), "Tape::seed: the tensor does not depend on any variable");
  fill(c, g.grad, value);
}

void Tape::backward(Context& c, size_t keep) {
  while (nodes_.size() > keep) {
    const auto node = std::move(nodes_.back());
    nodes_.pop_back();
    node(c);
  }
}

void Tape::forget_since(const Mark& mark) {
  nodes_.resize(mark.nodes);
  for (; vars_.size() > mark.vars; vars_.pop_back())
    if (Var* const stream = vars_.back().sum_of) stream->covered = false;
}

void Tape::reset() {
  nodes_.clear();
  vars_.clear();
  lasting_.clear();
  in_segment_ = false;
  context_ = nullptr;
}

}  // namespace krait
