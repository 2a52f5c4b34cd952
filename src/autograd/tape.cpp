#include "krait/autograd/tape.h"

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

Tensor Tape::grad(const Tensor& t) const {
  if (!t.var || !t.var->storage().written) return {};
  require(!t.var->covered, "a residual stream was used after something was added to it");
  return matching_view(*t.var, t);
}

void Tape::reserve_grad(Context& c, const Tensor& t) {
  if (!t.var) return;
  Var& v = t.var->storage();
  if (v.grad) return;
  require(c.open_scratch == 0, "Tape: a gradient is first asked for inside a Scratch");
  const size_t bytes = static_cast<size_t>(v.whole.numel()) * size_of(v.grad_dtype);
  v.grad = Tensor(c.arena->take_high(bytes), v.grad_dtype, v.whole.shape, v.whole.device);
}

GradTarget Tape::grad_into(Context& c, const Tensor& t) {
  if (!t.var) return {};
  require(!t.var->covered, "a residual stream was used after something was added to it");
  reserve_grad(c, t);
  Var& v = t.var->storage();
  bool add = v.written;
  if (!v.written && t.numel() != v.whole.numel()) {
    fill(c, v.grad, 0.0f);
    add = true;
  }
  v.written = true;
  return {matching_view(*t.var, t), add};
}

void Tape::share_grad(Context& c, const Tensor& from, const Tensor& to) {
  if (!to.var || !from.var || !from.var->storage().written) return;
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

void Tape::reset() {
  nodes_.clear();
  vars_.clear();
}

}  // namespace krait
