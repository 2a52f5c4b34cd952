#include "krait/nn/attention.h"

#include <cmath>

#include "krait/ops/concat/concat.h"
#include "krait/ops/conv1d_causal/conv1d_causal.h"
#include "krait/ops/gate/gate.h"
#include "krait/ops/linear/linear.h"
#include "krait/ops/scale/scale.h"

namespace krait::nn {

void check(const AttentionConfig& g) {
  const auto size = [](const char* what, int64_t v, int64_t most) {
    require(v >= 1 && v <= most, "config: {}: expected a number from 1 to {}, got {}", what, most,
            v);
  };
  size("num_attention_heads", g.heads, 512);
  size("num_key_value_heads", g.key_heads, g.heads);
  require(g.heads % g.key_heads == 0,
          "config: num_key_value_heads: expected a divisor of {}, got {}", g.heads, g.key_heads);
  size("head_dim", g.head_dim, 256);
  require(
      g.rotation.R >= 0 && g.rotation.R % 2 == 0 && g.rotation.R <= g.head_dim,
      "config: rotary positions: expected an even number of at most {} elements of a head, got {}",
      g.head_dim, g.rotation.R);
}

Attention::Attention(ParamSet& params, const std::string& name, const AttentionConfig& g)
    : config_(g) {
  const int64_t D = g.d_model, K = g.width(), P = g.head_dim;
  require(g.d_conv == 0 || g.layout == QkvLayout::rows,
          "attention: a convolution needs q, k, v as rows of one matrix");
  require(g.d_mlp == 0 || g.layout == QkvLayout::rows,
          "attention: an MLP beside the heads needs q, k, v as rows of one matrix");
  require(g.layout != QkvLayout::heads || g.heads == g.key_heads,
          "attention: q, k, v head by head need as many key heads as heads, got {} and {}",
          g.key_heads, g.heads);
  const auto matrix = [&](const std::string& part, int64_t rows, int64_t columns, double divide) {
    Param& p = params.add(name + "." + part + ".weight", {rows, columns},
                          g.deviation > 0 ? normal(g.deviation) : fan_in(columns, divide));
    p.decay = true;
    return &p;
  };
  const auto bias = [&](const std::string& part, int64_t n, Init init) {
    Param& p = params.add(name + "." + part + ".bias", {n}, std::move(init));
    p.keep_float32 = true;
    return &p;
  };
  const auto input = [&](const std::string& part, int64_t rows) {
    in_.push_back(matrix(part, rows, K, 1));
    if (g.qkv_bias) in_bias_.push_back(bias(part, rows, constant(0.0f)));
  };
  if (g.layout == QkvLayout::separate) {
    input("q_proj", g.heads * P);
    input("k_proj", g.key_heads * P);
    input("v_proj", g.key_heads * P);
  } else {
    input(g.qkv, g.channels() + 2 * g.d_mlp);  // q, k, v, and of the MLP up, gate
  }
  if (g.d_conv > 0) {
    Param& k = params.add(name + ".conv1d.weight", {g.channels(), 1, g.d_conv}, fan_in(g.d_conv));
    k.keep_float32 = true;
    k.decay = true;
    conv_ = &k;
    if (g.conv_bias) conv_bias_ = bias("conv1d", g.channels(), fan_in(g.d_conv));
  }
  out_ = matrix(g.out, D, g.heads * P + g.d_mlp, g.out_rescale);
  if (g.out_bias) out_bias_ = bias(g.out, D, constant(0.0f));
}

std::vector<StatePart> Attention::state_parts() const {
  const int64_t width = config_.key_heads * config_.head_dim;
  const auto cache = [&](const char* name) {
    const bool ring = config_.window > 0;
    return StatePart{.name = name,
                     .shape = ring ? Shape{config_.window, width} : Shape{width},
                     .per_token = !ring,
                     .activations = true};
  };
  std::vector<StatePart> parts;
  if (config_.d_conv > 0)
    parts.push_back(
        {.name = "conv", .shape = {config_.channels(), config_.d_conv}, .activations = true});
  parts.push_back(cache("k"));
  parts.push_back(cache("v"));
  parts.push_back({"length", {1}});
  return parts;
}

// q, k, v of x (B, L, D); `call.state` loses the convolution's part, if it has one, whose end is handed back.
Attention::Qkv Attention::project(Context& c, const Tensor& x, BlockCall& call,
                                  Tensor& conv_end) const {
  const AttentionConfig& g = config_;
  const int64_t B = x.size(0), L = x.size(1), P = g.head_dim;
  const auto linear = [&](size_t i) {
    return adapted_linear(c, x, *in_[i], in_bias_.empty() ? nullptr : in_bias_[i], adapters_[i]);
  };
  if (g.layout == QkvLayout::separate)
    return {linear(0).reshape({B, L, g.heads, P}), linear(1).reshape({B, L, g.key_heads, P}),
            linear(2).reshape({B, L, g.key_heads, P})};
  // Rows [from, to) of the projection.
  const auto rows_of = [&](int64_t from, int64_t to) {
    return ops::linear(c, x, in_[0]->value.slice(0, from, to),
                       in_bias_.empty() ? Tensor() : in_bias_[0]->value.slice(0, from, to),
                       c.activation);
  };
  const int64_t C = g.channels(), M = g.d_mlp;
  Tensor qkv = M > 0 ? rows_of(0, C) : linear(0), mlp;  // (B, L, C)
  if (g.layout == QkvLayout::heads) {
    const Tensor heads = qkv.reshape({B, L, g.heads, 3 * P});
    return {heads.slice(-1, 0, P), heads.slice(-1, P, 2 * P), heads.slice(-1, 2 * P, 3 * P)};
  }
  if (M > 0) {
    const Tensor both = rows_of(C, C + 2 * M);
    mlp = ops::gate(c, ops::Gate::silu, both.slice(-1, M, 2 * M), both.slice(-1, 0, M));
  }
  if (conv_) {
    const auto take_first = [](std::vector<Tensor>& v) {
      if (v.empty()) return Tensor();
      const Tensor first = v.front();
      v.erase(v.begin());
      return first;
    };
    const Tensor in = take_first(call.state.in), out = take_first(call.state.out);
    const ops::ConvResult conv = ops::conv1d_causal(
        c, qkv, conv_->value.reshape({g.channels(), g.d_conv}),
        conv_bias_ ? conv_bias_->value : Tensor(), /*silu=*/false, call.packing, in, out);
    qkv = conv.y;
    conv_end = conv.state;
  }
  const Tensor rows = qkv.reshape({B, L, g.heads + 2 * g.key_heads, P});
  return {rows.slice(2, 0, g.heads), rows.slice(2, g.heads, g.heads + g.key_heads),
          rows.slice(2, g.heads + g.key_heads, g.heads + 2 * g.key_heads),
          rows.slice(2, 0, g.heads + g.key_heads), mlp};
}

Tensor Attention::forward(Context& c, const Tensor& x, const Tensor& stream,
                          BlockCall& call) const {
  const AttentionConfig& g = config_;
  const auto cache = [](const std::vector<Tensor>& v) {
    return v.empty() ? ops::KeyCache() : ops::KeyCache{v[0], v[1], v[2]};
  };
  Tensor conv_end;
  Qkv p = project(c, ops::scale(c, x, g.in_factor), call, conv_end);
  const ops::KeyCache from = cache(call.state.in), to = cache(call.state.out);
  if (g.rotation.R > 0 && p.qk) {
    const Tensor turned = ops::rotary(c, p.qk, g.rotation, call.packing, from.length);
    p.q = turned.slice(2, 0, g.heads);
    p.k = turned.slice(2, g.heads, g.heads + g.key_heads);
  } else if (g.rotation.R > 0) {
    p.q = ops::rotary(c, p.q, g.rotation, call.packing, from.length);
    p.k = ops::rotary(c, p.k, g.rotation, call.packing, from.length);
  }
  ops::AttentionInputs in;
  in.q = p.q;
  in.k = p.k;
  in.v = p.v;
  in.scale = g.scale > 0 ? g.scale : 1 / std::sqrt(static_cast<float>(g.head_dim));
  in.window = g.window;
  const ops::AttentionResult a = ops::attention(c, in, call.packing, from, to);
  if (to) {
    call.state.out = {a.cache.k, a.cache.v, a.cache.length};
    if (conv_) call.state.out.insert(call.state.out.begin(), conv_end);
  }
  Tensor y = a.y.reshape({x.size(0), x.size(1), g.heads * g.head_dim});
  if (p.mlp) y = ops::concat(c, y, p.mlp);
  return project_and_add(c, y, *out_, out_bias_, stream, call, g.out_factor);
}

}  // namespace krait::nn
