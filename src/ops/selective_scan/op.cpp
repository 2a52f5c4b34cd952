// selective_scan: checks, memory, work lists and the tape node. See selective_scan.h.
#include "krait/ops/selective_scan/selective_scan.h"

#include <algorithm>

#include "krait/autograd/segment.h"
#include "krait/ops/selective_scan/gpu.h"
#include "krait/ops/selective_scan/kernels.h"
#include "krait/ops/selective_scan/problem.h"

namespace krait::ops {
namespace scan {

static const Kernels& kernels() { return KRAIT_PICK_ISA(selective_scan_kernels); }

// The block of channels `b` of the tokens of `s`; A2: of its channels.
static Block block_at(const Problem& p, const float* A2, int64_t b, const Sequence& s) {
  const auto [group, first, channels] = p.block(b);
  Block w;
  w.tokens = s.tokens;
  w.channels = static_cast<int>(channels);
  w.N = p.N;
  w.softplus = p.in.softplus;
  w.constant_B = p.constant_B;
  w.constant_C = p.constant_C;
  w.complex = p.in.complex;
  w.u = p.rows(p.in.u, s, first);
  w.dt = p.rows(p.in.dt, s, first);
  w.z = p.rows(p.in.z, s, first);
  w.B = p.constant_B ? rows_at(p.in.B, first, 0) : p.grouped_rows(p.in.B, s, group);
  w.C = p.constant_C ? rows_at(p.in.C, first, 0) : p.grouped_rows(p.in.C, s, group);
  w.A2 = A2;
  w.D = floats_at(p.in.D, first);
  w.dt_bias = floats_at(p.in.dt_bias, first);
  w.state_in = s.in < 0 ? nullptr : floats_at(p.state_in, (s.in * p.E + first) * p.N);
  return w;
}

// A2 of `n` floats of A from element `begin` on.
static void scale_A(const Problem& p, int64_t begin, int64_t n, float* A2) {
  const float* const A = floats_at(p.in.A, begin);
  if (p.in.complex)
    std::copy_n(A, n, A2);
  else
    kernels().scale_A(A, n, p.in.a_is_log, A2);
}

static Tensor scaled_A(Context& c, const Problem& p) {
  const Tensor A2 = c.scratch({p.E, p.N}, DType::f32);
  if (c.planning()) return A2;
  parallel_ranges(p.E * p.N, 16384, [&](int64_t begin, int64_t end) {
    scale_A(p, begin, end - begin, floats_at(A2, begin));
  });
  return A2;
}

static void forward(Context& c, const Problem& p, const Tensor& y, const Tensor& saved) {
  if (c.device.type == Device::cuda) return forward_on_gpu(c, p, y, saved);
  Scratch scratch(c);
  const ThreadScratch areas(c, forward_scratch(p.N) + p.N * kBlock);
  if (c.planning()) return;
  const int64_t n = p.sequences.size(), items = p.blocks() * n;
  const auto run = [&](int64_t item, bool new_block, float* A2) {
    const int64_t b = item / n;
    const auto [group, first, channels] = p.block(b);
    if (new_block) scale_A(p, first * p.N, channels * p.N, A2);
    const Sequence s = p.sequences[item % n];
    Forward w;
    w.block = block_at(p, A2, b, s);
    const Rows to = p.rows(y, s, first);
    w.y = {const_cast<void*>(to.data), to.stride, to.bf16, false};
    if (s.out >= 0 && p.state_out)
      w.state_out = floats_at(p.state_out, (s.out * p.E + first) * p.N);
    if (saved) {
      w.saved_stride = p.blocks() * p.N * kBlock;
      w.saved =
          static_cast<float*>(saved.data) + (s.begin / kChunk) * w.saved_stride + b * p.N * kBlock;
    }
    w.scratch = A2 + p.N * kBlock;
    const bool step = s.tokens <= kShort && !p.in.complex;
    (step ? kernels().scan_step : kernels().scan_chunked)(w);
  };
  // Pieces of some 8 microseconds at least, so that threads end at about the same time.
  const int64_t work = std::max<int64_t>(1, p.tokens / std::max<int64_t>(1, n)) * kBlock * p.N;
  parallel_ranges(items, std::max<int64_t>(1, 16384 / work), [&](int64_t begin, int64_t end) {
    float* const A2 = areas.mine();
    for (int64_t i = begin; i < end; ++i) run(i, i == begin || i % n == 0, A2);
  });
}

static GradRows grad_rows(const Problem& p, const GradTarget& g, const Sequence& s,
                          int64_t channel) {
  return to_write(p.rows(g.grad, s, channel), g.add);
}

// Writes or adds `value` as element i of a contiguous float32 gradient.
static void put(const GradTarget& g, int64_t i, float value) {
  float& to = static_cast<float*>(g.grad.data)[i];
  to = g.add ? to + value : value;
}

// The gradients summed over time and pieces: dA, dD, ddt_bias, constant dB and dC.
static void sum_pieces(const Problem& p, const float* A2, float* sums, int64_t pieces,
                       const Gradients& g) {
  const int64_t size = sums_size(p.N), step = p.blocks() * size;
  parallel_for(p.blocks(), [&](int64_t b) {
    const auto [group, first, channels] = p.block(b);
    const Sums at = sums_at(sums + b * size, p.N);
    const auto total = [&](const float* of_first_piece) {
      float sum = 0;
      for (int64_t i = 0; i < pieces; ++i) sum += of_first_piece[i * step];
      return sum;
    };
    for (int64_t i = 0; i < channels; ++i) {
      const int64_t e = first + i;
      if (g.D.grad) put(g.D, e, total(at.dD + i));
      if (g.dt_bias.grad) put(g.dt_bias, e, total(at.dt_bias + i));
      for (int64_t n = 0; n < p.N; ++n) {
        const int64_t lane = n * kBlock + i, en = e * p.N + n;
        const float A = p.in.a_is_log ? A2[en] * 0x1.62e430p-1f : 1.0f;
        if (g.A.grad) put(g.A, en, A * total(at.dA + lane));
        if (g.B.grad && p.constant_B) put(g.B, en, total(at.dB + lane));
        if (g.C.grad && p.constant_C) put(g.C, en, total(at.dC + lane));
      }
    }
  });
}

// dB or dC that varies over time: the sum over the sets of channels of each group.
static void sum_sets(const Problem& p, const Tensor& parts, int64_t sets_of_group,
                     const GradTarget& g) {
  const auto* part = static_cast<const float*>(parts.data);
  parallel_ranges(p.tokens, 256, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t group = 0; group < p.G; ++group) {
        const Rows to = grouped_rows_at(g.grad, p.place(t), group);
        for (int64_t n = 0; n < p.N; ++n) {
          float sum = 0;
          for (int64_t i = group * sets_of_group; i < (group + 1) * sets_of_group; ++i)
            sum += part[(i * p.tokens + t) * p.N + n];
          void* data = const_cast<void*>(to.data);
          if (to.bf16) {
            bf16& x = static_cast<bf16*>(data)[n];
            x = bf16(g.add ? static_cast<float>(x) + sum : sum);
          } else {
            float& x = static_cast<float*>(data)[n];
            x = g.add ? x + sum : sum;
          }
        }
      }
  });
}

// The gradient of the states handed in: a row may have started several sequences, or none.
static void sum_states(const Problem& p, const float* of_sequence, const GradTarget& g) {
  const int64_t size = p.E * p.N;
  auto* to = static_cast<float*>(g.grad.data);
  if (!g.add) std::fill_n(to, g.grad.numel(), 0.0f);
  for (int64_t s = 0; s < p.sequences.size(); ++s) {
    const int64_t row = p.sequences[s].in;
    if (row < 0) continue;
    for (int64_t i = 0; i < size; ++i) to[row * size + i] += of_sequence[s * size + i];
  }
}

// Work is cut into (set of channels) x (piece of the sequences), both from the shapes alone: sets of
// channels within a B/C group share one sum of dB and dC; pieces have their own sums over time.
static void backward(Context& c, const Problem& p, const Tensor& y, const Tensor& state,
                     const Tensor& saved) {
  const Tensor dy = c.tape->grad(y), dstate = state ? c.tape->grad(state) : Tensor();
  if (!dy && !dstate) return;
  const auto into = [&](const Tensor& t) { return c.tape->grad_into(c, t); };
  const Gradients g = {into(p.in.u), into(p.in.dt),      into(p.in.z),
                       into(p.in.A), into(p.in.B),       into(p.in.C),
                       into(p.in.D), into(p.in.dt_bias), into(p.state_in)};
  if (c.device.type == Device::cuda)
    return backward_on_gpu(c, p, dy, dstate, saved, c.tape->awaited(y) ? y : Tensor(), g);
  const int64_t in_set =
      std::clamp<int64_t>(p.N / 2, 8, 64);  // blocks; keeps the sums below the size of u
  const int64_t sets_of_group = (p.blocks_of_group() + in_set - 1) / in_set,
                sets = p.G * sets_of_group;
  const int64_t n = p.sequences.size(),
                pieces = std::clamp<int64_t>(32 / std::max<int64_t>(sets, 1), 1,
                                             std::max<int64_t>(n, 1));
  const int64_t states = p.N * kBlock;

  Scratch scratch(c);
  const Tensor A2 = scaled_A(c, p);
  const ThreadScratch areas(c, backward_scratch(p.N, in_set));
  const Tensor sums = c.scratch({pieces, p.blocks(), sums_size(p.N)}, DType::f32);
  Tensor parts_dB, parts_dC, dstates;
  if (g.B.grad && !p.constant_B) parts_dB = c.scratch({sets, p.tokens, p.N}, DType::f32);
  if (g.C.grad && !p.constant_C) parts_dC = c.scratch({sets, p.tokens, p.N}, DType::f32);
  if (g.state_in.grad) dstates = c.scratch({n, p.E, p.N}, DType::f32);
  if (c.planning()) return;

  auto* const all_sums = static_cast<float*>(sums.data);
  std::fill_n(all_sums, sums.numel(), 0.0f);
  parallel_for(sets * pieces, [&](int64_t item) {
    const int64_t set = item / pieces, piece = item % pieces;
    // at: block in the group
    const int64_t group = set / sets_of_group, at = set % sets_of_group * in_set;
    const int64_t b = group * p.blocks_of_group() + at, first = p.block(b).first;
    Backward w;
    w.blocks = static_cast<int>(std::min(in_set, p.blocks_of_group() - at));
    w.channels = std::min(w.blocks * int64_t{kBlock}, p.E / p.G - at * kBlock);
    w.sums = all_sums + (piece * p.blocks() + b) * sums_size(p.N);
    w.saved_stride = p.blocks() * states;
    w.scratch = areas.mine();
    for (int64_t i = 0; i < n; ++i) {
      const Sequence s = p.sequences[i];
      // A sequence belongs to the piece of the tokens that holds its first.
      if (std::min(s.begin * pieces / std::max<int64_t>(p.tokens, 1), pieces - 1) != piece)
        continue;
      w.block = block_at(p, floats_at(A2, first * p.N), b, s);
      w.dy = p.rows(dy, s, first);
      w.du = grad_rows(p, g.u, s, first);
      w.ddt = grad_rows(p, g.dt, s, first);
      w.dz = grad_rows(p, g.z, s, first);
      w.part_dB = floats_at(parts_dB, (set * p.tokens + s.begin) * p.N);
      w.part_dC = floats_at(parts_dC, (set * p.tokens + s.begin) * p.N);
      w.dstate_out = s.out < 0 ? nullptr : floats_at(dstate, (s.out * p.E + first) * p.N);
      w.dstate_in = floats_at(dstates, (i * p.E + first) * p.N);
      w.saved = floats_at(saved, ((s.begin / kChunk) * p.blocks() + b) * states);
      kernels().backward(w);
    }
  });
  sum_pieces(p, static_cast<const float*>(A2.data), all_sums, pieces, g);
  if (parts_dB) sum_sets(p, parts_dB, sets_of_group, g.B);
  if (parts_dC) sum_sets(p, parts_dC, sets_of_group, g.C);
  if (dstates) sum_states(p, static_cast<const float*>(dstates.data), g.state_in);
}

// Each tensor once; an element (t, e, n) of the recurrence is two products, an exponential and two
// multiply-adds, counted as 7 operations; three times that for recomputing it and the adjoint.
static void state_cost(Context& c, const Problem& p, const char* name, double tensors,
                       double flops) {
  const double rows = static_cast<double>(p.in.u.bytes() + p.in.dt.bytes() + p.in.z.bytes()) +
                      static_cast<double>(p.in.u.bytes());
  const double rest = static_cast<double>(p.in.B.bytes() + p.in.C.bytes() + p.in.A.bytes() +
                                          p.state_in.bytes() + p.state_out.bytes());
  c.cost(name, tensors * (rows + rest), flops * static_cast<double>(p.tokens * p.E * p.N));
}

}  // namespace scan

ScanResult selective_scan(Context& c, const ScanInputs& in, const Packing* packing,
                          const Tensor& state_in, const Tensor& state_out) {
  const bool record =
      c.tape && needs_grad({in.u, in.dt, in.A, in.B, in.C, in.D, in.z, in.dt_bias, state_in});
  const scan::Problem p(c, in, packing, state_in, state_out, record);
  const bool remakes = record && in.remake_y && in.u.var && in.dt.var && in.z.var &&
                       !c.keeps_all() && c.device.type == Device::cuda && scan::remakes_y_on_gpu(p);
  const Kept kept(c);
  ScanResult r{c.alloc(in.u.shape, in.u.dtype, !remakes), state_out};
  Tensor saved;
  if (record) {
    saved = c.device.type == Device::cuda
                ? c.alloc({p.tokens / scan::cuda_saved_interval(p.N), p.E, p.N}, DType::f32)
                : c.alloc({p.tokens / scan::kChunk, p.blocks(), p.N, scan::kBlock}, DType::f32);
    remakes ? c.tape->watch_remade(r.y) : c.tape->watch(r.y);
    if (r.state) c.tape->watch(r.state);
    c.tape->record([=](Context& b) {
      scan::state_cost(b, p, "selective_scan backward", 2, 21);
      scan::backward(b, p, r.y, r.state, saved);
      if (remakes) b.tape->remade(b, r.y);
    });
  }
  scan::state_cost(c, p, "selective_scan", 1, 7);
  scan::forward(c, p, r.y, saved);
  return r;
}

}  // namespace krait::ops
