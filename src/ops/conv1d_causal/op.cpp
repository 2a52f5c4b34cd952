#include <algorithm>
#include <cstring>
#include <type_traits>

#include "krait/autograd/tape.h"
#include "krait/base/threads.h"
#include "krait/ops/conv1d_causal/conv1d_causal.h"
#include "krait/ops/conv1d_causal/cuda.h"
#include "krait/ops/conv1d_causal/kernels.h"
#include "krait/tensor/memory.h"

namespace krait::ops {
namespace {

constexpr int64_t kForwardTokens = 64;
constexpr int64_t kBackwardTokens = 256;  // of one partial sum of dk and dbias

struct Sequence {
  int64_t begin, end, in, out;  // rows of the states, -1: none
};

// How the tokens are cut into sequences.
struct Cut {
  int64_t n = 0, tokens = 0, length = 0;  // length: of each row, where not packed
  const int64_t* begin = nullptr;
  const int32_t *in = nullptr, *out = nullptr;

  Sequence operator[](int64_t s) const {
    if (!begin) return {s * length, (s + 1) * length, s, s};
    return {begin[s], begin[s + 1], in[s], out[s]};
  }
  int64_t first_reaching(int64_t token) const {  // the sequence that holds `token`
    if (!begin) return token / length;
    return std::upper_bound(begin, begin + n + 1, token) - begin - 1;
  }
};

// The tensors of one call.
struct Call {
  Tensor x, k, bias, state_in, state_out;
  bool silu = false, packed = false, reverse = false;
  Packing packing;
  int64_t B = 0, L = 0, E = 0, W = 0, K = 0;

  int64_t sequences() const { return packed ? packing.n : B; }
  int64_t longest() const { return packed ? packing.longest : L; }
  Cut cut() const {
    if (!packed) return {B, B * L, L};
    return {packing.n,
            B * L,
            0,
            packing.begin.as<int64_t>(),
            packing.state_in.as<int32_t>(),
            packing.state_out.as<int32_t>()};
  }
  DType state_type() const { return (state_in ? state_in : state_out).dtype; }
  const void* row_in(int64_t row) const {
    return state_in && row >= 0 ? state_in.select(0, row).data : nullptr;
  }
  void* row_out(int64_t row) const {
    return state_out && row >= 0 ? state_out.select(0, row).data : nullptr;
  }
  ConvProblem problem() const {
    ConvProblem p;
    p.width = static_cast<int>(W);
    p.silu = silu;
    p.bf16 = x.dtype == DType::bf16;
    p.state_bf16 = state_type() == DType::bf16;
    p.E = E;
    p.K = K;
    p.x = x.data;
    p.x_stride = x.row_stride();
    p.y_stride = E;
    p.k = k.as<float>();
    p.bias = bias ? bias.as<float>() : nullptr;
    return p;
  }
};

// Moves a pointer to the row `rows` further and turns the distance of rows round.
template <class P>
void turn(P& data, int64_t& stride, int64_t rows, size_t element) {
  if (data)
    data = static_cast<std::conditional_t<std::is_const_v<std::remove_pointer_t<P>>,
                                          const std::byte*, std::byte*>>(data) +
           rows * stride * static_cast<int64_t>(element);
  stride = -stride;
}

// The problem as the tokens [begin, end) of one sequence see it: where time runs backwards, token t stands
// at row begin + end - 1 - t.
ConvProblem seen_from(ConvProblem p, bool reverse, const ConvRun& r) {
  if (!reverse) return p;
  const size_t element = p.bf16 ? sizeof(bf16) : sizeof(float);
  const int64_t last = r.begin + r.end - 1;
  int64_t dy_stride = p.y_stride;
  turn(p.x, p.x_stride, last, element);
  turn(p.y, p.y_stride, last, element);
  turn(p.dy, dy_stride, last, element);
  turn(p.dx, p.dx_stride, last, element);
  return p;
}

void check_state(const char* name, const Tensor& state, const Call& q) {
  if (!state) return;
  const bool either = q.x.dtype == DType::bf16;
  require((state.dtype == DType::f32 || state.dtype == q.x.dtype) && state.contiguous() &&
              state.rank() == 3 && state.size(1) == q.E && state.size(2) == q.K && q.K >= q.W - 1,
          "[conv1d_causal] {}: expected contiguous float32{} (S, E={}, K>={}), the same K for both "
          "states, got {} {}",
          name, either ? " or bfloat16" : "", q.E, q.W - 1, name_of(state.dtype), state.shape);
  require(q.packed || state.size(0) == q.B,
          "[conv1d_causal] {}: expected {} rows, one a sequence, got {}", name, q.B, state.size(0));
}

void check_packing(const Call& q) {
  const int64_t n = q.packing.n;
  require(n >= 0 && q.packing.begin.shape == Shape{n + 1} && q.packing.state_in.shape == Shape{n} &&
              q.packing.state_out.shape == Shape{n},
          "[conv1d_causal] packing of {} sequences: expected begin ({},), state_in ({},), "
          "state_out ({},), got {}, {}, {}",
          n, n + 1, n, n, q.packing.begin.shape, q.packing.state_in.shape,
          q.packing.state_out.shape);
}

void check_packing_values(const Call& q) {
  const Cut cut = q.cut();
  require(cut.begin[0] == 0 && cut.begin[cut.n] == cut.tokens,
          "[conv1d_causal] packing: expected to cover tokens 0 to {}, covers {} to {}", cut.tokens,
          cut.begin[0], cut.begin[cut.n]);
  const bool in_place = q.state_in && q.state_in.data == q.state_out.data;
  for (int64_t s = 0; s < cut.n; ++s) {
    const Sequence seq = cut[s];
    require(seq.begin <= seq.end && seq.end - seq.begin <= q.packing.longest,
            "[conv1d_causal] packing: sequence {} is tokens {} to {}, the longest is said to be {}",
            s, seq.begin, seq.end, q.packing.longest);
    require(
        seq.in < (q.state_in ? q.state_in.size(0) : seq.in + 1) &&
            seq.out < (q.state_out ? q.state_out.size(0) : seq.out + 1),
        "[conv1d_causal] packing: sequence {} names state rows {} and {}, outside of the states", s,
        seq.in, seq.out);
    require(!in_place || seq.in < 0 || seq.in == seq.out,
            "[conv1d_causal] packing: sequence {} moves row {} to row {} inside one state tensor; "
            "use two",
            s, seq.in, seq.out);
  }
}

Call check(Context& c, const Tensor& x, const Tensor& k, const Tensor& bias, bool silu,
           const Packing* packing, const Tensor& state_in, const Tensor& state_out, bool reverse) {
  require(x.rank() == 3 && x.row_strided() && (x.dtype == DType::f32 || x.dtype == DType::bf16),
          "[conv1d_causal] x: expected float32 or bfloat16 (B, L, E) with rows at one distance, "
          "got {} {}",
          name_of(x.dtype), x.shape);
  Call q{x, k, bias, state_in, state_out, silu, packing != nullptr, reverse};
  if (packing) q.packing = *packing;
  q.B = x.size(0);
  q.L = x.size(1);
  q.E = x.size(2);
  require(k.dtype == DType::f32 && k.contiguous() && k.rank() == 2 && k.size(0) == q.E &&
              k.size(1) >= 2 && k.size(1) <= kConvMaxWidth,
          "[conv1d_causal] k: expected contiguous float32 (E={}, W) with W from 2 to {}, got {} {}",
          q.E, kConvMaxWidth, name_of(k.dtype), k.shape);
  q.W = k.size(1);
  require(!bias || (bias.dtype == DType::f32 && bias.contiguous() && bias.shape == Shape{q.E}),
          "[conv1d_causal] bias: expected contiguous float32 ({},), got {} {}", q.E,
          name_of(bias.dtype), bias.shape);
  q.K = state_in ? state_in.size(-1) : state_out ? state_out.size(-1) : q.W;
  check_state("state_in", state_in, q);
  check_state("state_out", state_out, q);
  require(!state_in || !state_out || state_in.dtype == state_out.dtype,
          "[conv1d_causal] state_out: expected the type of state_in, {}, got {}",
          name_of(state_in.dtype), name_of(state_out.dtype));
  if (packing) {
    check_packing(q);
    if (!c.planning() && c.device.type == Device::cpu) check_packing_values(q);
  }
  return q;
}

// Channels of one run: all of a block where there are enough tokens to go round, fewer where there are not.
int64_t channel_block(int64_t pieces, int64_t E) {
  return pieces >= 16 ? kConvBlock
                      : std::min(kConvBlock, std::max<int64_t>(64, (E / 8 + 63) / 64 * 64));
}

// Runs fn(run, sequence, piece) over all tokens, in pieces of `grain` tokens and blocks of channels; the
// runs of a piece one after the other, `start(piece, e0, e1)` before the first.
template <class Start, class F>
void for_runs(const Call& q, const Cut& cut, int64_t grain, const Start& start, const F& fn) {
  const int64_t pieces = (cut.tokens + grain - 1) / grain;
  const int64_t block = channel_block(pieces, q.E);
  const int64_t blocks = (q.E + block - 1) / block;
  parallel_for(pieces * blocks, [&](int64_t job) {
    const int64_t piece = job / blocks;
    ConvRun r;
    r.e0 = job % blocks * block;
    r.e1 = std::min(q.E, r.e0 + block);
    start(piece, r.e0, r.e1);
    const int64_t from = piece * grain, to = std::min(cut.tokens, from + grain);
    for (int64_t s = cut.first_reaching(from); s < cut.n && cut[s].begin < to; ++s) {
      const Sequence seq = cut[s];
      r.begin = seq.begin;
      r.end = seq.end;
      r.from = std::max(from, seq.begin);
      r.to = std::min(to, seq.end);
      if (r.from >= r.to) continue;
      r.state_in = q.row_in(seq.in);
      fn(r, s, piece);
    }
  });
}

// taps (W, E) = k (E, W) transposed
void transpose_taps(const Call& q, const Tensor& taps) {
  const float* k = q.k.as<float>();
  for (int64_t w = 0; w < q.W; ++w)
    for (int64_t e = 0; e < q.E; ++e) taps.as<float>()[w * q.E + e] = k[e * q.W + w];
}

// The last K inputs of each sequence. In place is right: a column only ever takes from later ones.
template <class T, class S>
void hand_out_states(const Call& q, const Cut& cut) {
  const T* x = static_cast<const T*>(q.x.data);
  const int64_t stride = q.x.row_stride(), K = q.K;
  parallel_for(cut.n, [&](int64_t s) {
    const Sequence seq = cut[s];
    if (seq.out < 0) return;
    const S* from = static_cast<const S*>(q.row_in(seq.in));
    S* to = static_cast<S*>(q.row_out(seq.out));
    for (int64_t e = 0; e < q.E; ++e) {
      for (int64_t j = 0; j < K; ++j) {
        const int64_t t = seq.end - K + j;
        const int64_t column = K + t - seq.begin;  // of state_in, where t is before the sequence
        const int64_t row = q.reverse ? seq.begin + seq.end - 1 - t : t;
        to[e * K + j] = t >= seq.begin ? static_cast<S>(x[row * stride + e])
                        : from         ? from[e * K + column]
                                       : S(0.0f);
      }
    }
  });
}

void hand_out_states(const Call& q, const Cut& cut) {
  if (q.state_out.dtype == DType::bf16) return hand_out_states<bf16, bf16>(q, cut);
  q.x.dtype == DType::bf16 ? hand_out_states<bf16, float>(q, cut)
                           : hand_out_states<float, float>(q, cut);
}

void run_steps(const Call& q, const Cut& cut, ConvProblem p) {
  const ConvKernels& kernels = KRAIT_PICK_ISA(conv_kernels);
  const auto nothing = [](int64_t, int64_t, int64_t) {};
  for_runs(q, cut, kForwardTokens, nothing, [&](const ConvRun& r, int64_t s, int64_t) {
    kernels.step(seen_from(p, q.reverse, r), r, q.row_out(cut[s].out));
  });
}

float* floats(const Tensor& t) { return t ? t.as<float>() : nullptr; }

cuda::ConvSequences sequences_on_gpu(const Call& q) {
  const Cut cut = q.cut();
  return {cut.n, cut.tokens, cut.length, cut.begin, cut.in, cut.out, q.reverse};
}

void run_forward_on_gpu(Context& c, const Call& q, const Tensor& y) {
  if (c.planning()) return;
  ConvProblem p = q.problem();
  p.y = y.data;
  KRAIT_WITH_CUDA(
      cuda::conv_forward(p, sequences_on_gpu(q), q.state_in.data, q.state_out.data, c.stream));
}

void run_forward(Context& c, const Call& q, const Tensor& y) {
  if (c.device.type == Device::cuda) return run_forward_on_gpu(c, q, y);
  const bool one_token = q.longest() == 1 && q.sequences() == q.B * q.L && q.K <= q.W;
  Scratch scratch(c);
  const Tensor taps = one_token ? Tensor() : c.scratch({q.W, q.E}, DType::f32);
  if (c.planning()) return;
  const Cut cut = q.cut();
  ConvProblem p = q.problem();
  p.y = y.data;
  if (one_token) return run_steps(q, cut, p);
  transpose_taps(q, taps);
  p.taps = taps.as<float>();
  const ConvKernels& kernels = KRAIT_PICK_ISA(conv_kernels);
  const auto nothing = [](int64_t, int64_t, int64_t) {};
  for_runs(q, cut, kForwardTokens, nothing, [&](const ConvRun& r, int64_t, int64_t) {
    kernels.forward(seen_from(p, q.reverse, r), r);
  });
  if (q.state_out) hand_out_states(q, cut);
}

// dk (E, W) and dbias (E) from the partial sums (pieces, W+1, E), in the order of the pieces.
void add_up(const Call& q, const Tensor& sums, int64_t pieces, const GradTarget& dk,
            const GradTarget& dbias) {
  parallel_ranges(q.E, 64, [&](int64_t e0, int64_t e1) {
    for (int64_t e = e0; e < e1; ++e) {
      for (int64_t w = 0; w <= q.W; ++w) {
        const GradTarget& target = w < q.W ? dk : dbias;
        if (!target.grad) continue;
        float* out = target.grad.as<float>() + (w < q.W ? e * q.W + w : e);
        float sum = target.add ? *out : 0.0f;
        for (int64_t i = 0; i < pieces; ++i) sum += sums.as<float>()[(i * (q.W + 1) + w) * q.E + e];
        *out = sum;
      }
    }
  });
}

// d(state_in) from the gradients of the inputs before each sequence, (n, W-1, E), and from d(state_out)
// where a short sequence let part of its state pass through. Sequences may share a row: in their order.
void add_into_states(const Call& q, const Cut& cut, const Tensor& dhistory,
                     const Tensor& dstate_out, const Tensor& dstate_in) {
  const int64_t K = q.K, W = q.W, E = q.E;
  parallel_ranges(E, 64, [&](int64_t e0, int64_t e1) {
    for (int64_t s = 0; s < cut.n; ++s) {
      const Sequence seq = cut[s];
      if (seq.in < 0) continue;
      const int64_t T = seq.end - seq.begin;
      const float* history = dhistory.as<float>() + s * (W - 1) * E;
      const float* out =
          dstate_out && seq.out >= 0 ? dstate_out.as<float>() + seq.out * E * K : nullptr;
      float* in = dstate_in.as<float>() + seq.in * E * K;
      for (int64_t e = e0; e < e1; ++e) {
        for (int64_t j = 0; j < W - 1 && T > 0; ++j)
          in[e * K + K - (W - 1) + j] += history[j * E + e];
        for (int64_t j = T; j < K && out; ++j) in[e * K + j] += out[e * K + j - T];
      }
    }
  });
}

void run_backward_on_gpu(Context& b, const Call& q, const ConvProblem& p,
                         const cuda::ConvBackward& to) {
  const int64_t state_rows = q.state_in ? q.state_in.size(0) : 0;
  KRAIT_WITH_CUDA(cuda::conv_backward(p, sequences_on_gpu(q), to, state_rows, b.stream));
}

void backward(Context& b, const Call& q, const Tensor& y, const Tensor& state) {
  const Tensor dy = b.tape->grad(y);
  const Tensor dstate = state ? b.tape->grad(state) : Tensor();
  if (!dy && !dstate) return;
  const GradTarget dx = b.tape->grad_into(b, q.x);
  const GradTarget dk = b.tape->grad_into(b, q.k);
  const GradTarget dbias = b.tape->grad_into(b, q.bias);
  const GradTarget dstate_in = b.tape->grad_into(b, q.state_in);

  const bool gpu = b.device.type == Device::cuda;
  const int64_t grain = gpu ? cuda::conv_backward_tokens(q.B * q.L, q.E) : kBackwardTokens;
  const int64_t pieces = (q.B * q.L + grain - 1) / grain;
  const bool want_sums = dk.grad || dbias.grad;
  Scratch scratch(b);
  const Tensor taps = gpu ? Tensor() : b.scratch({q.W, q.E}, DType::f32);
  const Tensor sums = want_sums ? b.scratch({pieces, q.W + 1, q.E}, DType::f32) : Tensor();
  const Tensor dhistory =
      dstate_in.grad ? b.scratch({q.sequences(), q.W - 1, q.E}, DType::f32) : Tensor();
  const double n = static_cast<double>(q.x.numel());
  b.cost("conv1d_causal.backward", n * static_cast<double>(size_of(q.x.dtype)) * (dx.add ? 4 : 3),
         n * static_cast<double>(6 * q.W + (q.silu ? 10 : 1)));
  ConvProblem p = q.problem();
  p.dy = dy.data;
  p.dx = dx.grad.data;
  p.dx_stride = dx.grad ? dx.grad.row_stride() : 0;
  p.dx_add = dx.add;
  if (b.planning()) return;
  if (gpu) {
    if (dstate_in.grad && !dstate_in.add) fill(b, dstate_in.grad, 0.0f);
    return run_backward_on_gpu(b, q, p,
                               {.state_in = floats(q.state_in),
                                .dstate_out = floats(dstate),
                                .dhistory = floats(dhistory),
                                .dstate_in = floats(dstate_in.grad),
                                .sums = floats(sums),
                                .dk = floats(dk.grad),
                                .dk_add = dk.add,
                                .dbias = floats(dbias.grad),
                                .dbias_add = dbias.add});
  }
  const Cut cut = q.cut();
  transpose_taps(q, taps);
  p.taps = taps.as<float>();
  const ConvKernels& kernels = KRAIT_PICK_ISA(conv_kernels);
  const auto piece_sums = [&](int64_t piece) { return sums.as<float>() + piece * (q.W + 1) * q.E; };
  const auto start = [&](int64_t piece, int64_t e0, int64_t e1) {
    for (int64_t w = 0; w <= q.W && want_sums; ++w)
      std::fill(piece_sums(piece) + w * q.E + e0, piece_sums(piece) + w * q.E + e1, 0.0f);
  };
  for_runs(q, cut, kBackwardTokens, start, [&](ConvRun r, int64_t s, int64_t piece) {
    const int64_t out = cut[s].out;
    if (dstate && out >= 0) r.dstate_out = dstate.as<float>() + out * q.E * q.K;
    if (dhistory) r.dhistory = dhistory.as<float>() + s * (q.W - 1) * q.E;
    if (want_sums) r.sums = piece_sums(piece);
    kernels.backward(seen_from(p, q.reverse, r), r);
  });
  if (want_sums) add_up(q, sums, pieces, dk, dbias);
  if (dstate_in.grad) {
    if (!dstate_in.add) fill(b, dstate_in.grad, 0.0f);
    add_into_states(q, cut, dhistory, dstate, dstate_in.grad);
  }
}

}  // namespace

ConvResult conv1d_causal(Context& c, const Tensor& x, const Tensor& k, const Tensor& bias,
                         bool silu, const Packing* packing, const Tensor& state_in,
                         const Tensor& state_out, bool reverse) {
  const Call q = check(c, x, k, bias, silu, packing, state_in, state_out, reverse);
  const bool recorded = c.tape && needs_grad({x, k, bias, state_in});
  require(!recorded || !state_in || state_in.data != state_out.data,
          "[conv1d_causal] state_out: expected memory of its own while recording for backward, got "
          "that of state_in");
  require(!recorded || q.state_type() == DType::f32,
          "[conv1d_causal] states: expected float32 while recording for backward, got {}",
          name_of(q.state_type()));
  ConvResult result;
  result.y = c.alloc(x.shape, x.dtype);
  result.state = state_out.detach();
  const double n = static_cast<double>(x.numel());
  c.cost("conv1d_causal", 2 * n * static_cast<double>(size_of(x.dtype)),
         n * static_cast<double>(2 * q.W + (silu ? 4 : 0)));
  run_forward(c, q, result.y);
  if (recorded) {
    c.tape->watch(result.y);
    if (state_out) c.tape->watch(result.state);
    c.tape->record([q, result](Context& b) { backward(b, q, result.y, result.state); });
  }
  return result;
}

}  // namespace krait::ops
