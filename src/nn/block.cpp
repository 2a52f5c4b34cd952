#include "krait/nn/block.h"

#include <algorithm>
#include <utility>

#include "krait/ops/batch_norm/batch_norm.h"
#include "krait/ops/dropout/dropout.h"
#include "krait/ops/linear/linear.h"
#include "krait/ops/scale/scale.h"
#include "krait/tensor/memory.h"

namespace krait::nn {

Norm Norm::make(ParamSet& params, const std::string& name, ops::NormKind kind, int64_t D,
                float eps) {
  Norm n;
  n.kind = kind;
  n.eps = eps;
  Param& w = params.add(name + ".weight", {D}, constant(1.0f));
  w.keep_float32 = true;
  n.weight = &w;
  if (kind == ops::NormKind::rms) return n;
  Param& b = params.add(name + ".bias", {D}, constant(0.0f));
  b.keep_float32 = true;
  n.bias = &b;
  if (kind == ops::NormKind::layer) return n;
  const auto seen = [&](const char* what, float start) {
    Param& p = params.add(name + what, {D}, constant(start));
    p.keep_float32 = true;
    p.trained = false;
    return &p;
  };
  n.running_mean = seen(".running_mean", 0);
  n.running_var = seen(".running_var", 1);
  return n;
}

Tensor Norm::operator()(Context& c, const Tensor& x, DType out, bool remake_y) const {
  const auto value = [](const Param* p) { return p ? p->value : Tensor(); };
  if (kind == ops::NormKind::batch)
    return ops::batch_norm(c, x, value(weight), value(bias), value(running_mean),
                           value(running_var), eps, out);
  return ops::norm(c, kind, x, value(weight), value(bias), eps, out, {}, remake_y).y;
}

void PreNorm::add(const Norm& norm, std::unique_ptr<Mixer> mixer) {
  parts_.push_back({norm, std::move(mixer)});
}

void PreNorm::add_beside(std::unique_ptr<Mixer> mixer) {
  parts_.push_back({std::nullopt, std::move(mixer)});
}

std::vector<StatePart> PreNorm::state_parts() const {
  std::vector<StatePart> all;
  for (const Part& p : parts_)
    for (const StatePart& s : p.mixer->state_parts()) all.push_back(s);
  return all;
}

bool PreNorm::any_mixer(bool (Mixer::*has)() const) const {
  return std::any_of(parts_.begin(), parts_.end(),
                     [=](const Part& p) { return (*p.mixer.*has)(); });
}

bool PreNorm::routes() const { return any_mixer(&Mixer::routes); }

bool PreNorm::carries_by_host() const { return any_mixer(&Mixer::carries_by_host); }

StepLayer PreNorm::step_layer() const {
  if (parts_.size() != 1 || !parts_[0].norm) return {};
  return parts_[0].mixer->step_layer(*parts_[0].norm);
}

// run(call) with the mixer's share of the states that are left; the states it hands out are added
// to those of `call`.
template <class Run>
static Tensor with_states(const Mixer& mixer, BlockCall& call, BlockState& left, const Run& run) {
  const size_t n = mixer.state_parts().size();
  const auto take = [n](std::vector<Tensor>& from) {
    if (from.empty()) return from;
    const auto end = from.begin() + static_cast<std::ptrdiff_t>(n);
    std::vector<Tensor> taken(from.begin(), end);
    from.erase(from.begin(), end);
    return taken;
  };
  BlockCall inner = call;
  inner.state = {take(left.in), take(left.out)};
  const Tensor y = run(inner);
  for (const Tensor& end : inner.state.out) call.state.out.push_back(end);
  return y;
}

// Mixers know states of scans as float32. Those kept in bfloat16 are widened before the call and
// rounded after it.
static Tensor forward_widened(Context& c, const Mixer& mixer, const Tensor& x, const Tensor& stream,
                              BlockCall& call) {
  const BlockState kept = call.state;
  const std::vector<StatePart> parts = mixer.state_parts();
  const auto narrow = [&](const std::vector<Tensor>& of, size_t i) {
    return i < of.size() && of[i] && parts[i].scan && of[i].dtype != DType::f32;
  };
  const auto widened = [&](const Tensor& t) {
    const Tensor wide = c.alloc(t.shape, DType::f32);
    copy(c, t, wide);
    return wide;
  };
  for (size_t i = 0; i < parts.size(); ++i) {
    if (narrow(kept.in, i)) call.state.in[i] = widened(kept.in[i]);
    if (!narrow(kept.out, i)) continue;
    const bool in_place = narrow(kept.in, i) && kept.in[i].data == kept.out[i].data;
    call.state.out[i] = in_place ? call.state.in[i] : widened(kept.out[i]);
  }
  const Tensor y = mixer.forward(c, x, stream, call);
  for (size_t i = 0; i < parts.size(); ++i) {
    if (!narrow(kept.out, i)) continue;
    copy(c, call.state.out[i], kept.out[i]);
    call.state.out[i] = kept.out[i];
  }
  return y;
}

// Whether this is a step of decoding: one token of each sequence, and states that are overwritten,
// so that nobody will run it again.
static bool in_place(const Context& c, const Tensor& stream, const BlockCall& call) {
  if (c.tape || c.training || call.packing || stream.size(1) != 1) return false;
  const BlockState& s = call.state;
  return !s.in.empty() && !s.out.empty() && s.in[0] && s.in[0].data == s.out[0].data;
}

// Takes one token of each sequence through the layer by one op, stream (B, 1, D) -> (B, 1, D), and
// overwrites the states. Where there is no such op it does nothing and returns an empty tensor.
static Tensor step(Context& c, const StepLayer& layer, const Tensor& stream,
                   const std::vector<Tensor>& states) {
  if (const auto* one = std::get_if<ops::Mamba1Layer>(&layer))
    return ops::mamba1_step(c, *one, stream, states[0], states[1]);
  if (const auto* two = std::get_if<ops::Mamba2Layer>(&layer))
    return ops::mamba2_step(c, *two, stream, states[0], states[1]);
  return {};
}

Tensor PreNorm::forward(Context& c, const Tensor& r, BlockCall& call) const {
  std::vector<Tensor> normed;
  if (parallel_)
    for (const Part& p : parts_)
      normed.push_back(p.norm ? (*p.norm)(c, r, c.activation) : normed.back());
  Tensor stream = r, x;
  BlockState left = std::exchange(call.state, {});  // of the mixers still to come
  for (size_t i = 0; i < parts_.size(); ++i) {
    const Part& p = parts_[i];
    const bool alone = !parallel_ && p.norm && (i + 1 == parts_.size() || parts_[i + 1].norm);
    stream = with_states(*p.mixer, call, left, [&](BlockCall& inner) {
      if (alone && in_place(c, stream, inner))
        if (const Tensor next = step(c, p.mixer->step_layer(*p.norm), stream, inner.state.in))
          return next;
      if (parallel_) {
        x = normed[i];
      } else if (p.norm) {
        x = (*p.norm)(c, stream, c.activation, alone && p.mixer->projects_first());
      }
      return forward_widened(c, *p.mixer, x, stream, inner);
    });
  }
  return stream;
}

Tensor PostNorm::forward(Context& c, const Tensor& r, BlockCall& call) const {
  return norm_(c, forward_widened(c, *mixer_, r, r, call), DType::f32);
}

Tensor forward_part(Context& c, const Mixer& mixer, const Tensor& x, const Tensor& stream,
                    BlockCall& call, BlockState& left) {
  return with_states(mixer, call, left,
                     [&](BlockCall& inner) { return forward_widened(c, mixer, x, stream, inner); });
}

Tensor project_and_add(Context& c, const Tensor& y, const Param& w, const Param* bias,
                       const Tensor& stream, const BlockCall& call, float factor) {
  const Tensor x = ops::scale(c, y, factor);
  const Tensor b = bias ? ops::scale(c, bias->value, factor) : Tensor();
  if (!stream) return ops::linear(c, x, w.value, b, c.activation);
  if (call.dropout == 0.0f || !c.training)
    return ops::linear_add(c, x, w.value, b, stream, call.in_place);
  return ops::dropout_add(c, ops::linear(c, x, w.value, b, c.activation), stream, call.dropout);
}

}  // namespace krait::nn
