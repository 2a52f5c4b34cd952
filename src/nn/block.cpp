#include "krait/nn/block.h"

#include <algorithm>

#include "krait/ops/dropout/dropout.h"
#include "krait/ops/linear/linear.h"

namespace krait::nn {

Norm Norm::make(ParamSet& params, const std::string& name, ops::NormKind kind, int64_t D,
                float eps) {
  Norm n;
  n.kind = kind;
  n.eps = eps;
  Param& w = params.add(name + ".weight", {D}, constant(1.0f));
  w.keep_float32 = true;
  n.weight = &w;
  if (kind == ops::NormKind::layer) {
    Param& b = params.add(name + ".bias", {D}, constant(0.0f));
    b.keep_float32 = true;
    n.bias = &b;
  }
  return n;
}

Tensor Norm::operator()(Context& c, const Tensor& x, DType out) const {
  const auto value = [](const Param* p) { return p ? p->value : Tensor(); };
  return ops::norm(c, kind, x, value(weight), value(bias), eps, out).y;
}

void PreNorm::add(const Norm& norm, std::unique_ptr<Mixer> mixer) {
  const size_t states = mixer->state_parts().size();
  parts_.push_back({norm, std::move(mixer), states});
}

std::vector<StatePart> PreNorm::state_parts() const {
  std::vector<StatePart> all;
  for (const Part& p : parts_)
    for (const StatePart& s : p.mixer->state_parts()) all.push_back(s);
  return all;
}

bool PreNorm::routes() const {
  return std::any_of(parts_.begin(), parts_.end(), [](const Part& p) { return p.mixer->routes(); });
}

Tensor PreNorm::forward(Context& c, const Tensor& r, BlockCall& call) const {
  std::vector<Tensor> normed;
  if (parallel_)
    for (const Part& p : parts_) normed.push_back(p.norm(c, r, c.activation));
  Tensor stream = r;
  BlockState left = std::move(call.state);  // of the mixers still to come
  call.state = {};                          // the ends are collected in it
  const auto take = [](std::vector<Tensor>& from, size_t n) {
    if (from.empty()) return from;
    const auto end = from.begin() + static_cast<std::ptrdiff_t>(n);
    std::vector<Tensor> taken(from.begin(), end);
    from.erase(from.begin(), end);
    return taken;
  };
  for (size_t i = 0; i < parts_.size(); ++i) {
    const Part& p = parts_[i];
    const Tensor x = parallel_ ? normed[i] : p.norm(c, stream, c.activation);
    BlockCall inner = call;
    inner.state = {take(left.in, p.states), take(left.out, p.states)};
    stream = p.mixer->forward(c, x, stream, inner);
    for (const Tensor& end : inner.state.out) call.state.out.push_back(end);
  }
  return stream;
}

Tensor project_and_add(Context& c, const Tensor& y, const Param& w, const Param* bias,
                       const Tensor& stream, float dropout) {
  const Tensor b = bias ? bias->value : Tensor();
  if (dropout == 0.0f || !c.training) return ops::linear_add(c, y, w.value, b, stream);
  return ops::dropout_add(c, ops::linear(c, y, w.value, b, c.activation), stream, dropout);
}

}  // namespace krait::nn
