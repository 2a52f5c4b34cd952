#include "krait/ops/attention/gpu.h"

#include "krait/ops/attention/cuda.h"

namespace krait::ops {
namespace {

cuda::HeadRows rows_of(const Tensor& t) { return {t.data, token_distance(t), t.stride[2]}; }

cuda::HeadRows rows_of(const GradTarget& g) {
  if (!g.grad) return {};
  cuda::HeadRows r = rows_of(g.grad);
  r.add = g.add;
  return r;
}

float* floats_of(const Tensor& t) { return t ? t.as<float>() : nullptr; }

cuda::AttentionCall call_of(const GpuAttention& q) {
  const Tensor& x = q.in.q;
  cuda::AttentionCall c;
  c.H = x.size(2);
  c.Hkv = q.in.k.size(2);
  c.P = x.size(3);
  c.window = q.in.window;
  c.scale = q.in.scale;
  c.causal = q.in.causal;
  c.bf16 = x.dtype == DType::bf16;
  c.tokens = q.cache.tokens();
  c.L = x.size(1);
  c.longest = q.cache.longest();
  c.sequences = q.cache.sequences();
  if (const Packing* p = q.cache.packing()) {
    c.begin = p->begin.as<int64_t>();
    c.row_in = p->state_in.as<int32_t>();
    c.row_out = p->state_out.as<int32_t>();
  }
  c.q = rows_of(x);
  c.k = rows_of(q.in.k);
  c.v = rows_of(q.in.v);
  c.y = q.y.data;
  c.norm = floats_of(q.norm);
  if (const KeyCache& from = q.cache.from(); from && from.k.size(1) > 0) {  // with room for a token
    c.cache_bf16 = from.k.dtype == DType::bf16;
    c.from_k = from.k.data;
    c.from_v = from.v.data;
    c.from_length = floats_of(from.length);
    c.from_rows = from.k.size(0);
    c.from_C = from.k.size(1);
  }
  if (const KeyCache& to = q.cache.to()) {
    c.cache_bf16 = to.k.dtype == DType::bf16;
    c.to_k = to.k.data;
    c.to_v = to.v.data;
    c.to_length = floats_of(to.length);
    c.to_C = to.k.size(1);
  }
  c.in_place = q.cache.in_place();
  return c;
}

}  // namespace

void forward_on_gpu([[maybe_unused]] Context& c, const GpuAttention& q) {
  const cuda::AttentionCall call = call_of(q);
  const bool step = call.longest == 1;
  int64_t floats = 0;
  KRAIT_WITH_CUDA(floats = step ? cuda::attention_step_floats(call)
                                : cuda::attention_forward_floats(call));
  Scratch scratch(c);
  const Tensor parts = c.scratch({floats}, DType::f32);
  if (c.planning()) return;
  KRAIT_WITH_CUDA(step ? cuda::attention_step(call, parts.as<float>(), c.stream)
                       : cuda::attention_forward(call, parts.as<float>(), c.stream));
  // A step appends to its cache in place itself.
  if (call.to_k && !(step && call.in_place))
    KRAIT_WITH_CUDA(cuda::attention_append(call, c.stream));
}

void backward_on_gpu(Context& c, const GpuAttention& q, const GpuAttentionGradients& g) {
  cuda::AttentionBackward b;
  b.c = call_of(q);
  int64_t floats = 0;
  KRAIT_WITH_CUDA(floats = cuda::attention_backward_floats(b.c));
  Scratch scratch(c);
  const Tensor parts = c.scratch({floats}, DType::f32);
  if (c.planning()) return;
  b.dy = g.dy.data;
  b.dq = rows_of(g.dq);
  b.dk = rows_of(g.dk);
  b.dv = rows_of(g.dv);
  b.dk_out = floats_of(g.dk_out);
  b.dv_out = floats_of(g.dv_out);
  b.dk_in = floats_of(g.dk_in);
  b.dv_in = floats_of(g.dv_in);
  KRAIT_WITH_CUDA(cuda::attention_backward(b, parts.as<float>(), c.stream));
}

}  // namespace krait::ops
