// mamba3_scan: memory, work lists and the tape node. See mamba3_scan.h.
#include "krait/ops/mamba3_scan/mamba3_scan.h"

#include <algorithm>

#include "krait/autograd/segment.h"
#include "krait/ops/kernel_memory.h"
#include "krait/ops/mamba3_scan/gpu.h"
#include "krait/ops/mamba3_scan/kernels.h"
#include "krait/ops/mamba3_scan/problem.h"

namespace krait::ops {
namespace mamba3 {

static const Kernels& kernels() { return KRAIT_PICK_ISA(mamba3_scan_kernels); }

static float* floats_at(const Tensor& t, int64_t i) {
  return t ? static_cast<float*>(t.data) + i : nullptr;
}

// The states of a sequence at its inner borders lie at the slots from begin / kChunk on: those of different
// sequences cannot meet.
static float* saved_at(const Problem& p, const Tensor& saved, const Sequence& s, int64_t h) {
  return floats_at(saved, ((s.begin / kChunk) * p.H + h) * saved_size(p.size));
}

static void forward(Context& c, const Problem& p, const Tensor& y, const Tensor& saved) {
  if (c.device.type == Device::cuda) return forward_on_gpu(c, p, y, saved);
  Scratch scratch(c);
  const ThreadScratch areas(c, forward_scratch(p.size));
  if (c.planning()) return;
  parallel_for(p.sequences.size() * p.H, [&](int64_t item) {
    const int64_t h = item % p.H;
    const Sequence s = p.sequences[item / p.H];
    Forward w;
    w.head = p.head(h, s);
    w.y = to_write(rows_at(y, s.begin, h * p.size.P), false);
    w.to = state_at<float>(p.to, s.out, h, p);
    w.saved = saved_at(p, saved, s, h);
    w.saved_stride = p.H * saved_size(p.size);
    w.scratch = areas.mine();
    kernels().forward(w);
  });
}

// (H, rows, n) = the sums over the pieces of padded rows.
static void sum_pieces(const Problem& p, const float* first, int64_t pieces, int64_t rows,
                       int64_t n, const GradTarget& g) {
  if (!g.grad) return;
  const int64_t step = p.H * sums_size(p.size);
  auto* to = static_cast<float*>(g.grad.data);
  for (int64_t h = 0; h < p.H; ++h)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < n; ++i, ++to) {
        const float* part = first + h * sums_size(p.size) + r * padded(n) + i;
        float sum = g.add ? *to : 0.0f;
        for (int64_t piece = 0; piece < pieces; ++piece) sum += part[piece * step];
        *to = sum;
      }
}

// (tokens, rows, groups, n) = the sums over the sets of heads of each group of (set, tokens, rows, n).
static void sum_sets(const Problem& p, const Tensor& parts, int64_t rows, int64_t groups, int64_t n,
                     const GradTarget& g) {
  if (!parts) return;
  const int64_t sets = p.sets() / groups, step = p.tokens * rows * n;
  const auto put = [&](auto* to, float sum) {
    *to = std::remove_pointer_t<decltype(to)>(g.add ? static_cast<float>(*to) + sum : sum);
  };
  parallel_ranges(p.tokens, 64, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t i = 0; i < rows * groups * n; ++i) {
        const int64_t row = i / (groups * n), group = i / n % groups;
        const float* part = floats_at(parts, group * sets * step + (t * rows + row) * n + i % n);
        float sum = 0;
        for (int64_t set = 0; set < sets; ++set) sum += part[set * step];
        const Rows at = rows_at(g.grad, t, i);
        if (at.bf16) {
          put(static_cast<bf16*>(const_cast<void*>(at.data)), sum);
        } else {
          put(static_cast<float*>(const_cast<void*>(at.data)), sum);
        }
      }
  });
}

// The gradient of the states handed in, from those of the sequences: a row may have started several, or none.
static void sum_states(const Problem& p, const Tensor& of_sequences, const GradTarget& g) {
  if (!of_sequences) return;
  const int64_t size = of_sequences.numel() / std::max<int64_t>(1, of_sequences.size(0));
  auto* to = static_cast<float*>(g.grad.data);
  if (!g.add) std::fill_n(to, g.grad.numel(), 0.0f);
  for (int64_t s = 0; s < p.sequences.size(); ++s) {
    const int64_t row = p.sequences[s].in;
    if (row < 0) continue;
    const float* part = floats_at(of_sequences, s * size);
    for (int64_t i = 0; i < size; ++i) to[row * size + i] += part[i];
  }
}

// Where the gradients of head h of sequence s go. `dfrom` has a row for each sequence, this one's is `row`.
static HeadGrads grads_of(const Problem& p, const Gradients& g, const Sequence& s, int64_t row,
                          int64_t h, const Mamba3State& dto, const Mamba3State& dfrom,
                          const Tensor& saved) {
  const auto rows = [&](const GradTarget& t, int64_t column) {
    return to_write(rows_at(t.grad, s.begin, column), t.add);
  };
  HeadGrads to;
  to.dx = rows(g.x, h * p.size.P);
  to.dz = rows(g.z, h * p.size.P);
  to.ddt = rows(g.dt, h);
  to.dadt = rows(g.adt, h);
  to.dtrap = rows(g.trap, h);
  if (!p.shared_angle()) to.dangle = rows(g.angle, h * p.size.T);
  to.dto = state_at<const float>(dto, s.out, h, p);
  to.dfrom = state_at<float>(dfrom, row, h, p);
  to.saved = saved_at(p, saved, s, h);
  return to;
}

// Work is cut into (set of heads) x (piece of the sequences), both from the shapes alone.
static void backward(Context& c, const Problem& p, const Mamba3Result& result,
                     const Tensor& saved) {
  const auto grad = [&](const Tensor& t) { return t ? c.tape->grad(t) : Tensor(); };
  const Tensor dy = grad(result.y);
  Mamba3State dto = {grad(result.state.angle), grad(result.state.ssm), grad(result.state.k),
                     grad(result.state.v)};
  if (!dy && !dto.angle && !dto.ssm && !dto.k && !dto.v) return;
  const auto into = [&](const Tensor& t) { return c.tape->grad_into(c, t); };
  const Gradients g = {into(p.in.x),      into(p.in.z),      into(p.in.B),      into(p.in.C),
                       into(p.in.B_bias), into(p.in.C_bias), into(p.in.dt),     into(p.in.adt),
                       into(p.in.trap),   into(p.in.angle),  into(p.in.D),      into(p.in.norm),
                       into(p.in.mimo_x), into(p.in.mimo_z), into(p.in.mimo_o), into(p.from.angle),
                       into(p.from.ssm),  into(p.from.k),    into(p.from.v)};
  if (c.device.type == Device::cuda) return backward_on_gpu(c, p, dy, dto, saved, g);
  const int64_t P = p.size.P, N = p.size.N, R = p.size.R, T = p.size.T;
  const int64_t n = p.sequences.size(), sets = p.sets();
  const int64_t pieces = std::clamp<int64_t>(32 / sets, 1, std::max<int64_t>(n, 1));

  Scratch scratch(c);
  const ThreadScratch areas(c, backward_scratch(p.size));
  const Tensor sums = c.scratch({pieces, p.H, sums_size(p.size)}, DType::f32);
  const auto parts = [&](const GradTarget& target, int64_t row) {
    return target.grad ? c.scratch({sets, p.tokens, row}, DType::f32) : Tensor();
  };
  const Tensor parts_dB = parts(g.B, R * N), parts_dC = parts(g.C, R * N);
  const Tensor parts_dangle = p.shared_angle() ? parts(g.angle, T) : Tensor();
  Mamba3State dfrom;
  if (g.from_angle.grad || g.from_ssm.grad || g.from_k.grad || g.from_v.grad)
    dfrom = {c.scratch({n, p.H, T}, DType::f32), c.scratch({n, p.H, P, N}, DType::f32),
             c.scratch({n, R, p.H, N}, DType::f32), c.scratch({n, p.H, P}, DType::f32)};
  if (c.planning()) return;

  auto* const all_sums = static_cast<float*>(sums.data);
  std::fill_n(all_sums, sums.numel(), 0.0f);
  parallel_for(sets * pieces, [&](int64_t item) {
    const int64_t set = item / pieces, piece = item % pieces, first = p.first_head(set);
    Backward w;
    w.heads = static_cast<int>(p.heads_of(set));
    w.saved_stride = p.H * saved_size(p.size);
    w.scratch = areas.mine();
    for (int64_t i = 0; i < n; ++i) {
      const Sequence s = p.sequences[i];
      // A sequence belongs to the piece of the tokens that holds its first.
      if (std::min(s.begin * pieces / std::max<int64_t>(p.tokens, 1), pieces - 1) != piece)
        continue;
      const auto part = [&](const Tensor& t, int64_t row) {
        return floats_at(t, (set * p.tokens + s.begin) * row);
      };
      w.part_dB = part(parts_dB, R * N);
      w.part_dC = part(parts_dC, R * N);
      w.part_dangle = part(parts_dangle, T);
      for (int k = 0; k < w.heads; ++k) {
        const int64_t h = first + k;
        w.head[k] = p.head(h, s);
        w.dy[k] = rows_at(dy, s.begin, h * P);
        w.grads[k] = grads_of(p, g, s, i, h, dto, dfrom, saved);
        w.grads[k].sums = sums_at(all_sums + (piece * p.H + h) * sums_size(p.size), p.size);
      }
      kernels().backward(w);
    }
  });
  const Sums at = sums_at(all_sums, p.size);
  sum_pieces(p, at.B_bias, pieces, R, N, g.B_bias);
  sum_pieces(p, at.C_bias, pieces, R, N, g.C_bias);
  sum_pieces(p, at.mimo_x, pieces, R, P, g.mimo_x);
  sum_pieces(p, at.mimo_z, pieces, R, P, g.mimo_z);
  sum_pieces(p, at.mimo_o, pieces, R, P, g.mimo_o);
  sum_pieces(p, at.norm, pieces, 1, P, g.norm);
  sum_pieces(p, at.D, pieces, 1, 1, g.D);
  sum_sets(p, parts_dB, R, p.G, N, g.B);
  sum_sets(p, parts_dC, R, p.G, N, g.C);
  sum_sets(p, parts_dangle, 1, 1, T, g.angle);
  if (g.from_angle.grad) sum_states(p, dfrom.angle, g.from_angle);
  if (g.from_ssm.grad) sum_states(p, dfrom.ssm, g.from_ssm);
  if (g.from_k.grad) sum_states(p, dfrom.k, g.from_k);
  if (g.from_v.grad) sum_states(p, dfrom.v, g.from_v);
}

// Each tensor once. An element (t, p, n) of the state is a decay, and a product and sum for each rank to
// write and to read; backward does that again, and twice that in each of two sweeps.
static void cost(Context& c, const Problem& p, const char* name, double tensors, double sweeps) {
  double bytes = static_cast<double>(p.in.x.bytes());
  for (const Tensor& t : {p.in.x, p.in.z, p.in.B, p.in.C, p.in.dt, p.in.adt, p.in.trap, p.in.angle,
                          p.from.ssm, p.to.ssm})
    bytes += static_cast<double>(t.bytes());
  const auto elements = static_cast<double>(p.tokens * p.H * p.size.P * p.size.N);
  c.cost(name, tensors * bytes, elements * (1 + sweeps * 2 * static_cast<double>(p.size.R)));
}

}  // namespace mamba3

Mamba3Result mamba3_scan(Context& c, const Mamba3Inputs& in, const Packing* packing,
                         const Mamba3State& state_in, const Mamba3State& state_out) {
  const Kept kept(c);
  const bool record =
      c.tape && needs_grad({in.x, in.B, in.C, in.B_bias, in.C_bias, in.dt, in.adt, in.trap,
                            in.angle, in.z, in.D, in.norm, in.mimo_x, in.mimo_z, in.mimo_o,
                            state_in.angle, state_in.ssm, state_in.k, state_in.v});
  const mamba3::Problem p(c, in, packing, state_in, state_out, record);
  Mamba3Result r{c.alloc(in.x.shape, in.x.dtype), state_out};
  Tensor saved;
  if (record) {
    saved = c.alloc({p.tokens / mamba3::kChunk, p.H, mamba3::saved_size(p.size)}, DType::f32);
    c.tape->watch(r.y);
    if (r.state.ssm)
      for (Tensor* t : {&r.state.angle, &r.state.ssm, &r.state.k, &r.state.v}) c.tape->watch(*t);
    c.tape->record([=](Context& b) {
      mamba3::cost(b, p, "mamba3_scan backward", 2, 6);
      mamba3::backward(b, p, r, saved);
    });
  }
  mamba3::cost(c, p, "mamba3_scan", 1, 2);
  mamba3::forward(c, p, r.y, saved);
  return r;
}

}  // namespace krait::ops
