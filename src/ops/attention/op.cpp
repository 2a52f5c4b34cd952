#include <algorithm>

#include "krait/autograd/segment.h"
#include "krait/base/threads.h"
#include "krait/ops/attention/attention.h"
#include "krait/ops/attention/cache.h"
#include "krait/ops/attention/gpu.h"
#include "krait/ops/attention/kernels.h"
#include "krait/tensor/memory.h"

namespace krait::ops {
namespace {

constexpr int64_t kStepPositions = 512;  // of one piece of a one-token call

bool on_gpu(const Context& c) { return c.device.type == Device::cuda; }

void check_rows(const char* name, const Tensor& t, const Tensor& q, int64_t heads) {
  require(t.rank() == 4 && t.dtype == q.dtype && t.stride[3] == 1 && t.size(0) == q.size(0) &&
              t.size(1) == q.size(1) && t.size(2) == heads && t.size(3) == q.size(3) &&
              token_distance(t) >= 0,
          "[attention] {}: expected {} (B={}, L={}, {}, P={}) with tokens at one distance and a "
          "dense last axis, got {} {}",
          name, name_of(q.dtype), q.size(0), q.size(1), heads, q.size(3), name_of(t.dtype),
          t.shape);
}

struct Call {
  AttentionInputs in;
  CacheCall cache;
  AttentionProblem problem;

  AttentionSequence sequence(int64_t i, const Tensor& y, const Tensor& norm) const {
    const CachedSequence c = cache[i];
    const AttentionProblem& p = problem;
    const auto offset = [](const Tensor& t, int64_t elements) {
      return static_cast<std::byte*>(t.data) + elements * static_cast<int64_t>(size_of(t.dtype));
    };
    AttentionSequence s;
    s.tokens = c.tokens();
    s.first = c.length;
    s.n_runs = cache.runs(c, s.runs);
    KeyRun& own = s.runs[s.n_runs++];
    own.begin = c.length;
    own.end = c.length + c.tokens();
    own.bf16 = p.bf16;
    own.k_row = token_distance(in.k);
    own.v_row = token_distance(in.v);
    own.k_head = in.k.stride[2];
    own.v_head = in.v.stride[2];
    own.k = offset(in.k, c.begin * own.k_row);
    own.v = offset(in.v, c.begin * own.v_row);
    s.q = offset(in.q, c.begin * p.q_token);
    s.y = offset(y, c.begin * p.H * p.P);
    if (norm) s.norm = norm.as<float>() + 2 * c.begin * p.H;
    return s;
  }
};

Call check(Context& c, const AttentionInputs& in, const Packing* packing, const KeyCache& from,
           const KeyCache& to) {
  const Tensor& q = in.q;
  require(q.rank() == 4 && (q.dtype == DType::f32 || q.dtype == DType::bf16) &&
              q.size(3) <= kAttentionMaxHead && q.size(2) <= kAttentionMaxHeads && q.size(3) > 0,
          "[attention] q: expected float32 or bfloat16 (B, L, H <= {}, P <= {}), got {} {}",
          kAttentionMaxHeads, kAttentionMaxHead, name_of(q.dtype), q.shape);
  const int64_t H = q.size(2), Hkv = in.k.rank() == 4 ? in.k.size(2) : 0;
  require(Hkv > 0 && H % Hkv == 0 && H / Hkv <= kAttentionRows,
          "[attention] k: expected (B, L, Hkv, P) whose Hkv divides the {} heads of q, got {}", H,
          in.k.shape);
  check_rows("q", q, q, H);
  check_rows("k", in.k, q, Hkv);
  check_rows("v", in.v, q, Hkv);
  require(in.window >= 0 && (in.causal || (in.window == 0 && !from && !to)),
          "[attention] a window or a cache: expected causal attention");
  Call call;
  call.in = in;
  AttentionProblem& p = call.problem;
  p.H = H;
  p.Hkv = Hkv;
  p.P = q.size(3);
  p.scale = in.scale;
  p.causal = in.causal;
  p.window = in.window;
  p.bf16 = q.dtype == DType::bf16;
  p.q_token = token_distance(q);
  p.q_head = q.stride[2];
  call.cache = CacheCall(q.size(0), q.size(1), Hkv, p.P, q.dtype, in.window, packing, from, to);
  if (!c.planning() && !on_gpu(c)) call.cache.check_values();
  return call;
}

// Pairs of a query and a key of one head: as far as lengths are known.
double pairs(Context& c, const Call& q) {
  if (c.planning() || on_gpu(c)) {
    const double tokens = static_cast<double>(q.cache.tokens()),
                 longest = static_cast<double>(q.cache.longest());
    return q.in.causal ? tokens * (longest + 1) / 2 : tokens * longest;
  }
  double n = 0;
  for (int64_t s = 0; s < q.cache.sequences(); ++s) {
    const double T = static_cast<double>(q.cache[s].tokens()),
                 before = static_cast<double>(q.cache[s].length);
    n += q.in.causal ? T * before + T * (T + 1) / 2 : T * T;
  }
  return q.in.window > 0 ? std::min(n, static_cast<double>(q.cache.tokens() * q.in.window)) : n;
}

double moved_bytes(const Call& q) {
  const auto element = static_cast<double>(size_of(q.in.q.dtype));
  return static_cast<double>(q.cache.tokens() * 2 * (q.problem.H + q.problem.Hkv) * q.problem.P) *
         element;
}

// One token a sequence: its keys in pieces, side by side, then the pieces together.
void run_steps(Context& c, const Call& q, const Tensor& y, const Tensor& norm) {
  const AttentionProblem& p = q.problem;
  const int64_t n = q.cache.sequences(), most = q.cache.most_positions();
  const int64_t pieces = (most + kStepPositions - 1) / kStepPositions;
  const int64_t stride = p.H * (p.P + 2);
  Scratch scratch(c);
  const Tensor scaled = c.scratch({n, p.H, p.P}, DType::f32);
  const Tensor parts = c.scratch({n, pieces, stride}, DType::f32);
  if (c.planning()) return;
  const AttentionKernels& kernels = KRAIT_PICK_ISA(attention_kernels);
  const auto part = [&](int64_t s, int64_t piece) {
    float* f = parts.as<float>() + (s * pieces + piece) * stride;
    return AttentionPart{f, f + p.H, f + 2 * p.H};
  };
  const auto begin_of = [&](const AttentionSequence& a) {
    return p.window > 0 ? std::max<int64_t>(0, a.first - p.window + 1) : 0;
  };
  parallel_for(n, [&](int64_t s) {
    const AttentionSequence a = q.sequence(s, y, norm);
    float* to = scaled.as<float>() + s * p.H * p.P;
    for (int64_t i = 0; a.tokens > 0 && i < p.H * p.P; ++i) {
      const int64_t at = i / p.P * p.q_head + i % p.P;
      to[i] = p.scale * (p.bf16 ? static_cast<float>(static_cast<const bf16*>(a.q)[at])
                                : static_cast<const float*>(a.q)[at]);
    }
  });
  parallel_for(n * pieces, [&](int64_t job) {
    const int64_t s = job / pieces;
    const AttentionSequence a = q.sequence(s, y, norm);
    const int64_t begin = begin_of(a) + job % pieces * kStepPositions, end = a.first + a.tokens;
    if (a.tokens == 0 || begin >= end) return;
    kernels.step(p, a, scaled.as<float>() + s * p.H * p.P, begin,
                 std::min(end, begin + kStepPositions), part(s, job % pieces));
  });
  parallel_for(n, [&](int64_t s) {
    const AttentionSequence a = q.sequence(s, y, norm);
    const int64_t positions = a.first + a.tokens - begin_of(a);
    if (a.tokens > 0)
      kernels.join(p, a, part(s, 0), stride, (positions + kStepPositions - 1) / kStepPositions);
  });
}

void run_forward(Context& c, const Call& q, const Tensor& y, const Tensor& norm) {
  if (q.cache.longest() == 1) return run_steps(c, q, y, norm);
  if (c.planning()) return;
  const AttentionKernels& kernels = KRAIT_PICK_ISA(attention_kernels);
  const int64_t grain = kAttentionRows / q.problem.group(), Hkv = q.problem.Hkv;
  const int64_t blocks = (q.cache.longest() + grain - 1) / grain;
  parallel_for(q.cache.sequences() * Hkv * blocks, [&](int64_t job) {
    const int64_t s = job / blocks / Hkv, head = job / blocks % Hkv, from = job % blocks * grain;
    const int64_t tokens = q.cache[s].tokens();
    if (from >= tokens) return;
    kernels.forward(q.problem, q.sequence(s, y, norm), head, from, std::min(tokens, from + grain));
  });
}

struct Saved {
  Tensor y, norm;
  KeyCache cache;  // the one handed out
};

// Gradients of a cache: cleared where nothing was written yet, since positions only add to them.
Tensor cleared(Context& b, const GradTarget& g) {
  if (g.grad && !g.add) fill(b, g.grad, 0.0f);
  return g.grad;
}

void backward(Context& b, const Call& q, const Saved& saved) {
  const auto grad = [&](const Tensor& t) { return t ? b.tape->grad(t) : Tensor(); };
  const Tensor dy = grad(saved.y), dk_out = grad(saved.cache.k), dv_out = grad(saved.cache.v);
  if (!dy && !dk_out && !dv_out) return;
  const GradTarget dq = b.tape->grad_into(b, q.in.q);
  const GradTarget dk = b.tape->grad_into(b, q.in.k);
  const GradTarget dv = b.tape->grad_into(b, q.in.v);
  const Tensor dk_in = cleared(b, b.tape->grad_into(b, q.cache.from().k));
  const Tensor dv_in = cleared(b, b.tape->grad_into(b, q.cache.from().v));
  const AttentionProblem& p = q.problem;
  b.cost("attention.backward", 3 * moved_bytes(q),
         10 * pairs(b, q) * static_cast<double>(p.H * p.P));
  if (on_gpu(b))
    return backward_on_gpu(b, {q.in, q.cache, saved.y, saved.norm},
                           {dy, dk_out, dv_out, dk_in, dv_in, dq, dk, dv});
  Scratch scratch(b);
  const Tensor delta = b.scratch({q.cache.tokens(), p.H}, DType::f32);
  const Tensor dq_sum = b.scratch({q.cache.tokens(), p.H, p.padded()}, DType::f32);
  if (b.planning()) return;

  const auto run = [&](int64_t i, int64_t head) {
    const CachedSequence c = q.cache[i];
    AttentionSequence s = q.sequence(i, saved.y, saved.norm);
    const auto offset = [](const Tensor& t, int64_t elements) -> std::byte* {
      return t ? static_cast<std::byte*>(t.data) + elements * static_cast<int64_t>(size_of(t.dtype))
               : nullptr;
    };
    s.dy = offset(dy, c.begin * p.H * p.P);
    s.delta = delta.as<float>() + c.begin * p.H;
    s.dq_sum = dq_sum.as<float>() + c.begin * p.H * p.padded();
    s.dq = offset(dq.grad, c.begin * p.q_token);
    s.add_q = dq.add;
    KeyRun& own = s.runs[s.n_runs - 1];
    own.dk = offset(dk.grad, c.begin * own.k_row);
    own.dv = offset(dv.grad, c.begin * own.v_row);
    own.add_k = dk.add;
    own.add_v = dv.add;
    for (int r = 0; r + 1 < s.n_runs; ++r) q.cache.add_gradients(c, dk_in, dv_in, s.runs[r]);
    q.cache.gradients_out(c, dk_out, dv_out, s);
    KRAIT_PICK_ISA(attention_kernels).backward(p, s, head);
  };
  if (dk_in || dv_in) {  // sequences may start from the same row: one after the other
    parallel_for(p.Hkv, [&](int64_t head) {
      for (int64_t s = 0; s < q.cache.sequences(); ++s) run(s, head);
    });
  } else {
    parallel_for(q.cache.sequences() * p.Hkv, [&](int64_t job) { run(job / p.Hkv, job % p.Hkv); });
  }
}

}  // namespace

AttentionResult attention(Context& c, const AttentionInputs& in, const Packing* packing,
                          const KeyCache& from, const KeyCache& to) {
  const Kept kept(c);
  const Call q = check(c, in, packing, from, to);
  const bool recorded = c.tape && needs_grad({in.q, in.k, in.v, from.k, from.v});
  require(!recorded || !from || from.k.data != to.k.data,
          "[attention] to: expected memory of its own while recording for backward, got that of "
          "from");
  require(!recorded || ((!from || from.k.dtype == DType::f32) && (!to || to.k.dtype == DType::f32)),
          "[attention] recording for backward: expected float32 caches");
  const AttentionProblem& p = q.problem;
  AttentionResult result{c.alloc(in.q.shape, in.q.dtype),
                         {to.k.detach(), to.v.detach(), to.length.detach()}};
  const Tensor norm = recorded ? c.alloc({q.cache.tokens(), p.H, 2}, DType::f32) : Tensor();
  c.cost("attention", moved_bytes(q), 4 * pairs(c, q) * static_cast<double>(p.H * p.P));
  if (on_gpu(c)) {
    forward_on_gpu(c, {in, q.cache, result.y, norm});
  } else {
    run_forward(c, q, result.y, norm);
    if (to && !c.planning()) q.cache.append(in.k, in.v);
  }
  if (recorded) {
    c.tape->watch(result.y);
    if (to) {
      c.tape->watch(result.cache.k);
      c.tape->watch(result.cache.v);
    }
    c.tape->record(
        [q, saved = Saved{result.y, norm, result.cache}](Context& b) { backward(b, q, saved); });
  }
  return result;
}

}  // namespace krait::ops
