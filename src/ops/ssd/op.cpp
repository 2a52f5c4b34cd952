// ssd: checks, memory, work lists and the tape node. See ssd.h.
#include <algorithm>
#include <cmath>

#include "krait/autograd/segment.h"
#include "krait/ops/kernel_memory.h"
#include "krait/ops/ssd/gpu.h"

namespace krait::ops {
namespace {

using ssd_call::floats_at;
using ssd_call::Gradients;
using ssd_call::HeadSet;
using ssd_call::padded;
using ssd_call::Problem;
using ssd_cpu::Backward;
using ssd_cpu::backward_scratch;
using ssd_cpu::Forward;
using ssd_cpu::forward_scratch;
using ssd_cpu::kChunk;
using ssd_cpu::Kernels;
using ssd_cpu::kShort;
using ssd_cpu::Piece;
using ssd_cpu::sums_size;

const Kernels& kernels() { return KRAIT_PICK_ISA(ssd_kernels); }

// A itself, negative, from its logarithm where that is what was given.
Tensor rates(Context& c, const Problem& p) {
  const Tensor A = c.scratch({p.H}, DType::f32);
  if (c.planning()) return A;
  for (int64_t h = 0; h < p.H; ++h) {
    const float a = *floats_at(p.in.A, h);
    *floats_at(A, h) = p.in.a_is_log ? -std::exp(a) : a;
  }
  return A;
}

bool multiplies_pairs(const Problem& p) {
  return p.in.x.dtype == DType::bf16 && p.in.B.dtype == DType::bf16 &&
         p.in.C.dtype == DType::bf16 && kernels().has_pairs();
}

// Of a state before a chunk, as forward keeps it.
void* saved_at(const Problem& p, const Tensor& saved, const Sequence& s, const HeadSet& set) {
  if (!saved) return nullptr;
  const int64_t i = (s.begin / kChunk * p.H + set.first) * p.saved_size();
  return static_cast<std::byte*>(saved.data) + i * static_cast<int64_t>(size_of(saved.dtype));
}

Piece piece_of(const Problem& p, const Tensor& A, const HeadSet& set, const Sequence& s) {
  Piece w;
  w.tokens = s.tokens, w.heads = set.heads, w.P = p.P, w.N = p.N;
  w.pairs = multiplies_pairs(p);
  w.softplus = p.in.softplus, w.dt_min = p.in.dt_min, w.dt_max = p.in.dt_max;
  w.x = rows_at(p.in.x, s.begin, set.first * p.P);
  w.dt = rows_at(p.in.dt, s.begin, set.first);
  w.B = rows_at(p.in.B, s.begin, set.group * p.N);
  w.C = rows_at(p.in.C, s.begin, set.group * p.N);
  w.A = floats_at(A, set.first);
  w.D_per_channel = p.in.D && p.in.D.rank() == 2;
  w.D = floats_at(p.in.D, set.first * (w.D_per_channel ? p.P : 1));
  w.dt_bias = floats_at(p.in.dt_bias, set.first);
  w.state_in =
      s.in < 0 ? nullptr : floats_at(p.state_in, (s.in * p.H + set.first) * p.state_size());
  return w;
}

void forward(Context& c, const Problem& p, const Tensor& y, const Tensor& saved) {
  if (c.device.type == Device::cuda) return ssd_call::forward_on_gpu(c, p, y, saved);
  Scratch scratch(c);
  const Tensor A = rates(c, p);
  const ThreadScratch areas(c, padded(forward_scratch(p.P, p.N)));
  if (c.planning()) return;
  const int64_t n = p.sequences.size();
  parallel_for(p.sets() * n, [&](int64_t item) {
    const HeadSet set = p.set(item / n);
    const Sequence s = p.sequences[item % n];
    const int64_t at_set = set.first * p.state_size();
    Forward w;
    w.piece = piece_of(p, A, set, s);
    w.y = to_write(rows_at(y, s.begin, set.first * p.P), false);
    if (s.out >= 0) w.state_out = floats_at(p.state_out, s.out * p.H * p.state_size() + at_set);
    w.saved_stride = p.H * p.saved_size();
    w.saved = saved_at(p, saved, s, set);
    w.scratch = areas.mine();
    (s.tokens <= kShort ? kernels().step : kernels().chunked)(w);
  });
}

// Writes or adds `value` as element i of a contiguous float32 gradient.
void put(const GradTarget& g, int64_t i, float value) {
  float& to = static_cast<float*>(g.grad.data)[i];
  to = g.add ? to + value : value;
}

// The gradients summed over time: `sums` has those of each sequence and head.
void sum_sequences(const Problem& p, const Tensor& A, const Tensor& sums, const Gradients& g) {
  const int64_t size = sums_size(p.P), step = p.H * size, n = p.sequences.size();
  parallel_for(p.H, [&](int64_t h) {
    const auto total = [&](int64_t i) {
      double sum = 0;
      for (int64_t s = 0; s < n; ++s) sum += *floats_at(sums, s * step + h * size + i);
      return sum;
    };
    if (g.A.grad)
      put(g.A, h, static_cast<float>(total(0) * (p.in.a_is_log ? *floats_at(A, h) : 1.0f)));
    if (g.dt_bias.grad) put(g.dt_bias, h, static_cast<float>(total(1)));
    if (!g.D.grad) return;
    double of_head = 0;
    for (int64_t i = 0; i < p.P; ++i) {
      const double sum = total(2 + i);
      of_head += sum;
      if (g.D.grad.rank() == 2) put(g.D, h * p.P + i, static_cast<float>(sum));
    }
    if (g.D.grad.rank() == 1) put(g.D, h, static_cast<float>(of_head));
  });
}

// dB or dC: the sum over the sets of heads of each group.
void sum_sets(const Problem& p, const Tensor& parts, const GradTarget& g) {
  const int64_t sets = p.sets_of_group();
  parallel_ranges(p.tokens, 256, [&](int64_t begin, int64_t end) {
    for (int64_t group = 0; group < p.G; ++group)
      kernels().sum_sets({.parts = floats_at(parts, (group * sets * p.tokens + begin) * p.N),
                          .sets = sets,
                          .distance = p.tokens * p.N,
                          .tokens = end - begin,
                          .N = p.N,
                          .to = to_write(rows_at(g.grad, begin, group * p.N), g.add)});
  });
}

// The gradient of the states handed in: a row may have started several sequences, or none.
void sum_states(const Problem& p, const Tensor& of_sequence, const GradTarget& g) {
  const int64_t size = p.H * p.state_size();
  if (!g.add) std::fill_n(floats_at(g.grad, 0), g.grad.numel(), 0.0f);
  for (int64_t s = 0; s < p.sequences.size(); ++s) {
    const int64_t row = p.sequences[s].in;
    if (row < 0) continue;
    const float* const from = floats_at(of_sequence, s * size);
    float* const to = floats_at(g.grad, row * size);
    for (int64_t i = 0; i < size; ++i) to[i] += from[i];
  }
}

void backward(Context& c, const Problem& p, const Tensor& y, const Tensor& state,
              const Tensor& saved) {
  const Tensor dy = c.tape->grad(y), dstate = state ? c.tape->grad(state) : Tensor();
  if (!dy && !dstate) return;
  const auto into = [&](const Tensor& t) { return c.tape->grad_into(c, t); };
  const Gradients g = {into(p.in.x), into(p.in.dt), into(p.in.A),       into(p.in.B),
                       into(p.in.C), into(p.in.D),  into(p.in.dt_bias), into(p.state_in)};
  if (c.device.type == Device::cuda) return ssd_call::backward_on_gpu(c, p, dy, dstate, saved, g);
  const int64_t n = p.sequences.size();
  Scratch scratch(c);
  const Tensor A = rates(c, p);
  const ThreadScratch areas(c, padded(backward_scratch(p.P, p.N)));
  const Tensor sums = c.scratch({n, p.H, sums_size(p.P)}, DType::f32);
  Tensor parts_dB, parts_dC, dstates;
  if (g.B.grad) parts_dB = c.scratch({p.sets(), p.tokens, p.N}, DType::f32);
  if (g.C.grad) parts_dC = c.scratch({p.sets(), p.tokens, p.N}, DType::f32);
  if (g.state_in.grad) dstates = c.scratch({n, p.H, p.P, p.N}, DType::f32);
  if (c.planning()) return;

  parallel_for(p.sets() * n, [&](int64_t item) {
    const int64_t i = item / n, s_index = item % n;
    const HeadSet set = p.set(i);
    const Sequence s = p.sequences[s_index];
    const int64_t state_row = p.H * p.state_size(), at_set = set.first * p.state_size();
    Backward w;
    w.piece = piece_of(p, A, set, s);
    w.dy = rows_at(dy, s.begin, set.first * p.P);
    w.dx = to_write(rows_at(g.x.grad, s.begin, set.first * p.P), g.x.add);
    w.ddt = to_write(rows_at(g.dt.grad, s.begin, set.first), g.dt.add);
    w.part_dB = floats_at(parts_dB, (i * p.tokens + s.begin) * p.N);
    w.part_dC = floats_at(parts_dC, (i * p.tokens + s.begin) * p.N);
    w.dstate_out = s.out < 0 ? nullptr : floats_at(dstate, s.out * state_row + at_set);
    w.dstate_in = floats_at(dstates, s_index * state_row + at_set);
    w.saved_stride = p.H * p.saved_size();
    w.saved = saved_at(p, saved, s, set);
    w.sums = floats_at(sums, (s_index * p.H + set.first) * sums_size(p.P));
    w.scratch = areas.mine();
    kernels().backward(w);
  });
  sum_sequences(p, A, sums, g);
  if (parts_dB) sum_sets(p, parts_dB, g.B);
  if (parts_dC) sum_sets(p, parts_dC, g.C);
  if (dstates) sum_states(p, dstates, g.state_in);
}

// Each tensor once. A token of a head takes 2 P N multiply-adds for the state in and out, and half a chunk
// times P within the chunk; backward twice that for each of its two products of every one, and once more
// for the scores.
void state_cost(Context& c, const Problem& p, const char* name, double tensors, double products) {
  const double bytes =
      static_cast<double>(2 * p.in.x.bytes() + p.in.dt.bytes() + p.in.B.bytes() + p.in.C.bytes() +
                          p.state_in.bytes() + p.state_out.bytes());
  const auto head = static_cast<double>(2 * p.P * p.N + kChunk / 2 * p.P);
  const auto group = static_cast<double>(kChunk / 2 * p.N);
  c.cost(name, tensors * bytes,
         products * 2 * static_cast<double>(p.tokens) *
             (static_cast<double>(p.H) * head + static_cast<double>(p.G) * group));
}

}  // namespace

SsdResult ssd(Context& c, const SsdInputs& in, const Packing* packing, const Tensor& state_in,
              const Tensor& state_out) {
  const bool keeps_all = c.keeps_all();
  const Kept kept(c);
  const bool record =
      c.tape && needs_grad({in.x, in.dt, in.A, in.B, in.C, in.D, in.dt_bias, state_in});
  const Problem p(c, in, packing, state_in, state_out, record);
  SsdResult r{c.alloc(in.x.shape, in.x.dtype), state_out};
  Tensor saved;
  if (record) {
    if (c.device.type == Device::cpu) {
      saved = c.alloc({p.tokens / kChunk, p.H, p.saved_size()},
                      multiplies_pairs(p) ? DType::bf16 : DType::f32);
    } else if (const int64_t n = keeps_all ? ssd_call::kept_on_gpu(p) : 0; n > 0) {
      saved = c.alloc({n}, DType::f32);
    }
    c.tape->watch(r.y);
    if (r.state) c.tape->watch(r.state);
    c.tape->record([=](Context& b) {
      state_cost(b, p, "ssd backward", 2, 3);
      backward(b, p, r.y, r.state, saved);
    });
  }
  state_cost(c, p, "ssd", 1, 1);
  forward(c, p, r.y, saved);
  return r;
}

}  // namespace krait::ops
