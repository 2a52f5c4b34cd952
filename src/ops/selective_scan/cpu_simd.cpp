// The loops of selective_scan. The recurrence is bound by arithmetic: about 14 vector operations a vector
// of (channel, state) pairs, with the states of a block in registers over the whole chunk.
#include "krait/ops/selective_scan/simd_complex.h"

namespace krait::KRAIT_ISA {
namespace selective_scan {

// Rounded once, or nearly: an error of A acts in the same direction at every step of a sequence.
// log2(e) is kHigh + kLow; e^a = 2^m (1 + s), |s| < 1/2, so that log2(e) e^a = 2^m (kHigh + (kHigh s + kLow)).
static void scale_A(const float* A, int64_t n, bool is_log, float* A2) {
  constexpr float kHigh = 0x1.715476p+0f, kLow = 0x1.4ae0cp-26f;
  for_lanes(0, n, [&](auto tag, int64_t i) {
    const hn::RebindToSigned<decltype(tag)> di;
    const auto high = hn::Set(tag, kHigh), low = hn::Set(tag, kLow);
    auto a = hn::LoadU(tag, A + i);
    if (!is_log) {
      hn::StoreU(hn::MulAdd(a, high, hn::Mul(a, low)), tag, A2 + i);
      return;
    }
    a = hn::IfThenElse(hn::Lt(a, hn::Set(tag, -87.0f)), hn::Set(tag, -87.0f), a);
    a = hn::IfThenElse(hn::Gt(a, hn::Set(tag, 87.0f)), hn::Set(tag, 87.0f), a);
    const auto m = hn::NearestInt(hn::Mul(a, high));
    const auto mf = hn::ConvertTo(tag, m);
    auto r = hn::NegMulAdd(mf, hn::Set(tag, 0x1.62ep-1f), a);  // ln 2 in two parts
    r = hn::NegMulAdd(mf, hn::Set(tag, 0x1.0bfbe8p-15f), r);
    auto p = hn::MulAdd(r, hn::Set(tag, 0.001384364790f), hn::Set(tag, 0.008374162949f));
    p = hn::MulAdd(p, r, hn::Set(tag, 0.041668001562f));
    p = hn::MulAdd(p, r, hn::Set(tag, 0.166664317250f));
    p = hn::MulAdd(p, r, hn::Set(tag, 0.499999940395f));
    const auto s = hn::MulAdd(hn::Mul(r, r), p, r);
    const auto value = hn::Add(high, hn::MulAdd(s, high, low));
    const auto scaled = hn::Add(hn::BitCast(di, value), hn::ShiftLeft<23>(m));
    // The shifted power of two of a NaN turns it into a number.
    hn::StoreU(hn::IfThenElse(hn::IsNaN(a), a, hn::Neg(hn::BitCast(tag, scaled))), tag, A2 + i);
  });
}

static void scan_chunked(const scan::Forward& w) {
  const scan::Block& b = w.block;
  const int64_t N = b.N, row = kChunk * kBlock;
  Area area{w.scratch};
  float *u = area.take(row), *delta = area.take(row), *x = area.take(row), *y = area.take(row);
  float *A = area.take(N * kBlock), *h = area.take(N * kBlock);
  float *const_B = area.take(N * kBlock), *const_C = area.take(N * kBlock);
  float *float_B = area.take(kChunk * N), *float_C = area.take(kChunk * N);
  float D_buffer[kBlock], bias_buffer[kBlock];
  const float* D_row = row_of(b.D, b.channels, D_buffer);
  const float* bias = row_of(b.dt_bias, b.channels, bias_buffer);
  load_transposed(b.A2, b.channels, N, A);
  load_transposed(b.state_in, b.channels, N, h);
  Pass p{};
  p.A = A, p.h = h, p.delta = delta, p.x = x, p.y = y;
  if (b.constant_B) {
    load_transposed(static_cast<const float*>(b.B.data), b.channels, N, const_B);
    p.B = {const_B, 0, kBlock};
  }
  if (b.constant_C) {
    load_transposed(static_cast<const float*>(b.C.data), b.channels, N, const_C);
    p.C = {const_C, 0, kBlock};
  }
  for (int64_t t = 0; t < b.tokens; t += kChunk) {
    if (t > 0 && w.saved) copy_floats(h, N * kBlock, w.saved + (t / kChunk - 1) * w.saved_stride);
    p.rows = b.tokens - t < kChunk ? b.tokens - t : kChunk;
    if (!b.constant_B) p.B = varying(b.B, t, p.rows, N, float_B);
    if (!b.constant_C) p.C = varying(b.C, t, p.rows, N, float_C);
    load_rows(b.u, t, p.rows, b.channels, u);
    load_rows(b.dt, t, p.rows, b.channels, delta);
    discretise(b, p.rows, bias, u, delta, x, nullptr);
    skip(p.rows, D_row, u, y);
    prefetch_rows(b.u, t + kChunk, b.tokens);
    prefetch_rows(b.dt, t + kChunk, b.tokens);
    prefetch_rows(b.z, t, b.tokens);
    prefetch_rows({w.y.data, w.y.stride, w.y.bf16}, t, b.tokens);
    all_passes<false>(p, b);
    if (b.z.data) {
      load_rows(b.z, t, p.rows, b.channels, u);
      gate(p.rows, u, y);
    }
    store_rows(w.y, t, p.rows, b.channels, y);
  }
  if (w.state_out) store_transposed(h, b.channels, N, w.state_out);
}

// The first `lanes` floats, zero beyond; touches no others (masked loads of older sets may).
static HWY_INLINE V load_part(const float* p, int lanes) {
  if (lanes == kLanes) return hn::LoadU(d, p);
  float buffer[kLanes] = {};
  for (int i = 0; i < lanes; ++i) buffer[i] = p[i];
  return hn::LoadU(d, buffer);
}

static HWY_INLINE void store_part(V value, int lanes, float* p) {
  if (lanes == kLanes) {
    hn::StoreU(value, d, p);
    return;
  }
  float buffer[kLanes];
  hn::StoreU(value, d, buffer);
  for (int i = 0; i < lanes; ++i) p[i] = buffer[i];
}

constexpr int kTogether = kSumsTogether;  // channels whose sums over n are formed at once

// A few steps, vectorised over n: a channel's state is contiguous and is read and written once.
static void scan_step(const scan::Forward& w) {
  const scan::Block& b = w.block;
  const int64_t N = b.N, row = scan::kShort * kBlock;
  Area area{w.scratch};
  float *u = area.take(row), *delta = area.take(row), *x = area.take(row), *y = area.take(row);
  float *float_B = area.take(scan::kShort * N), *float_C = area.take(scan::kShort * N);
  float D_buffer[kBlock], bias_buffer[kBlock];
  const float* D_row = row_of(b.D, b.channels, D_buffer);
  const float* bias = row_of(b.dt_bias, b.channels, bias_buffer);
  load_rows(b.u, 0, b.tokens, b.channels, u);
  load_rows(b.dt, 0, b.tokens, b.channels, delta);
  discretise(b, b.tokens, bias, u, delta, x, nullptr);
  skip(b.tokens, D_row, u, y);
  // Here `column` goes from channel to channel.
  Operand B{static_cast<const float*>(b.B.data), 0, N},
      C{static_cast<const float*>(b.C.data), 0, N};
  if (!b.constant_B) {
    B = varying(b.B, 0, b.tokens, N, float_B);
    B.column = 0;
  }
  if (!b.constant_C) {
    C = varying(b.C, 0, b.tokens, N, float_C);
    C.column = 0;
  }
  for (int e = 0; e < b.channels; e += kTogether) {
    int64_t channel[kTogether];  // beyond the last: the last again, its results dropped
    for (int i = 0; i < kTogether; ++i) channel[i] = e + i < b.channels ? e + i : b.channels - 1;
    for (int64_t n = 0; n < N; n += kLanes) {
      const int lanes = static_cast<int>(N - n < kLanes ? N - n : kLanes);
      const auto some = [&](const float* at_n) { return load_part(at_n + n, lanes); };
      V A[kTogether], h[kTogether], product[kTogether];
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i) {
        A[i] = some(b.A2 + channel[i] * N);
        h[i] = b.state_in ? some(b.state_in + channel[i] * N) : hn::Zero(d);
      }
      for (int64_t t = 0; t < b.tokens; ++t) {
        const int64_t at_t = t * kBlock + e;
#pragma GCC unroll 4
        for (int i = 0; i < kTogether; ++i) {
          const V a = Exp2(hn::Mul(hn::Set(d, delta[at_t + i]), A[i]));
          const V xB =
              hn::Mul(hn::Set(d, x[at_t + i]), some(B.at + t * B.step + channel[i] * B.column));
          h[i] = hn::MulAdd(a, h[i], xB);
          product[i] = hn::Mul(h[i], some(C.at + t * C.step + channel[i] * C.column));
        }
        add_sums_of_lanes(d, product, y + at_t);
      }
      if (!w.state_out) continue;
      for (int i = 0; i < kTogether && e + i < b.channels; ++i)
        store_part(h[i], lanes, w.state_out + channel[i] * N + n);
    }
  }
  if (b.z.data) {
    load_rows(b.z, 0, b.tokens, b.channels, u);
    gate(b.tokens, u, y);
  }
  store_rows(w.y, 0, b.tokens, b.channels, y);
}

// The rows of one chunk that backward works on.
struct ChunkRows {
  float *u, *delta, *x, *slope, *z, *dy, *g, *y, *s_B, *s_A, *out;
};

// Sums over the lanes: out[i] = Σ in[i * kBlock ...].
static void reduce_rows(const float* in, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i, in += kBlock) {
    V sum = hn::LoadU(d, in);
    for (int v = kLanes; v < kBlock; v += kLanes) sum = hn::Add(sum, hn::LoadU(d, in + v));
    out[i] = sum_lanes(d, sum);
  }
}

static ops::Rows beside(const ops::Rows& r, int64_t column) {
  ops::Rows s = r;
  if (s.data) s.data = static_cast<const char*>(r.data) + column * (r.bf16 ? 2 : 4);
  return s;
}

static ops::GradRows beside(const ops::GradRows& r, int64_t column) {
  ops::GradRows s = r;
  if (s.data) s.data = static_cast<char*>(r.data) + column * (r.bf16 ? 2 : 4);
  return s;
}

static void add_floats(const float* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

// After the passes: the gradients of the chunk's u, dt, z, and the sums over time of those of D and bias.
static void finish_block(const scan::Backward& w, int block, int channels, int64_t t0, int64_t rows,
                         const float* D_row, const ChunkRows& c, const scan::Sums& sums) {
  const int64_t column = int64_t{block} * kBlock;
  const V unit = hn::Set(d, w.block.complex ? 1.0f : 0x1.62e430p-1f);  // ln 2: s_A has A2's
  float dD[kBlock] = {}, dbias[kBlock] = {};
  for (int64_t i = 0; i < rows * kBlock; i += kBlock)
    for_row([&](int v) {
      const V u = at(c.u + i, v), g = at(c.g + i, v), s_B = at(c.s_B + i, v);
      const V du = hn::MulAdd(at(c.delta + i, v), s_B, hn::Mul(at(D_row, v), g));
      const V ddelta = hn::MulAdd(u, s_B, hn::Mul(unit, at(c.s_A + i, v)));
      const V ddt = hn::Mul(ddelta, at(c.slope + i, v));
      hn::StoreU(hn::MulAdd(g, u, at(dD, v)), d, dD + v);
      hn::StoreU(hn::Add(at(dbias, v), ddt), d, dbias + v);
      hn::StoreU(du, d, c.out + i + v);
      hn::StoreU(ddt, d, c.s_A + i + v);
    });
  add_floats(dD, kBlock, sums.dD);
  add_floats(dbias, kBlock, sums.dt_bias);
  store_rows(beside(w.du, column), t0, rows, channels, c.out);
  store_rows(beside(w.ddt, column), t0, rows, channels, c.s_A);
  if (!w.dz.data) return;
  for (int64_t i = 0; i < rows * kBlock; i += kLanes) {
    const V dy = hn::LoadU(d, c.dy + i), y = hn::LoadU(d, c.y + i);
    hn::StoreU(hn::Mul(hn::Mul(dy, y), SiluSlope(d, hn::LoadU(d, c.z + i))), d, c.out + i);
  }
  store_rows(beside(w.dz, column), t0, rows, channels, c.out);
}

static void backward(const scan::Backward& w) {
  const scan::Block& b = w.block;
  const int64_t N = b.N, row = kChunk * kBlock, NB = N * kBlock;
  Area area{w.scratch};
  ChunkRows c;
  for (float** r :
       {&c.u, &c.delta, &c.x, &c.slope, &c.z, &c.dy, &c.g, &c.y, &c.s_B, &c.s_A, &c.out})
    *r = area.take(row);
  float* history = area.take(row * scan::kBackwardStates);
  float* decay = area.take(row * scan::kBackwardStates);
  float *lanes_dB = area.take(kChunk * NB), *lanes_dC = area.take(kChunk * NB);
  float *float_B = area.take(kChunk * N), *float_C = area.take(kChunk * N);
  float *h = area.take(NB), *const_B = area.take(NB), *const_C = area.take(NB);
  float *A = area.take(w.blocks * NB), *dh = area.take(w.blocks * NB);
  const auto channels_of = [&](int k) {
    const int64_t left = w.channels - int64_t{k} * kBlock;
    return static_cast<int>(left < kBlock ? left : kBlock);
  };
  const auto of_block = [](const float* p, int64_t offset) { return p ? p + offset : nullptr; };
  for (int k = 0; k < w.blocks; ++k) {
    load_transposed(b.A2 + k * NB, channels_of(k), N, A + k * NB);
    load_transposed(of_block(w.dstate_out, k * NB), channels_of(k), N, dh + k * NB);
  }
  const int64_t chunks = (b.tokens + kChunk - 1) / kChunk;
  for (int64_t i = chunks - 1; i >= 0; --i) {
    const int64_t t = i * kChunk, rows = b.tokens - t < kChunk ? b.tokens - t : kChunk;
    Pass p{};
    p.rows = rows;
    p.delta = c.delta, p.x = c.x, p.g = c.g, p.h = h, p.y = c.y;
    p.history = history, p.decay = decay, p.s_B = c.s_B, p.s_A = c.s_A;
    p.dB = lanes_dB, p.dC = lanes_dC;
    if (b.constant_B) {
      p.B = {const_B, 0, kBlock};
    } else {
      p.B = varying(b.B, t, rows, N, float_B);
      p.dB_step = NB;
      zero_floats(lanes_dB, rows * NB);
    }
    if (b.constant_C) {
      p.C = {const_C, 0, kBlock};
    } else {
      p.C = varying(b.C, t, rows, N, float_C);
      p.dC_step = NB;
      zero_floats(lanes_dC, rows * NB);
    }
    for (int k = 0; k < w.blocks; ++k) {
      const int64_t column = int64_t{k} * kBlock;
      const int channels = channels_of(k);
      const scan::Sums sums = scan::sums_at(w.sums + k * scan::sums_size(N), N);
      float D_buffer[kBlock], bias_buffer[kBlock];
      const float* D_row = row_of(of_block(b.D, column), channels, D_buffer);
      const float* bias = row_of(of_block(b.dt_bias, column), channels, bias_buffer);
      load_rows(beside(b.u, column), t, rows, channels, c.u);
      load_rows(beside(b.dt, column), t, rows, channels, c.delta);
      load_rows(beside(w.dy, column), t, rows, channels, c.dy);
      discretise(b, rows, bias, c.u, c.delta, c.x, c.slope);
      copy_floats(c.dy, rows * kBlock, c.g);
      if (b.z.data) {
        load_rows(beside(b.z, column), t, rows, channels, c.z);
        gate(rows, c.z, c.g);
      }
      skip(rows, D_row, c.u, c.y);
      zero_floats(c.s_B, rows * kBlock);
      zero_floats(c.s_A, rows * kBlock);
      if (i > 0) {
        copy_floats(w.saved + (i - 1) * w.saved_stride + k * NB, NB, h);
      } else {
        load_transposed(of_block(b.state_in, k * NB), channels, N, h);
      }
      p.A = A + k * NB, p.dh = dh + k * NB, p.dA = sums.dA;
      if (b.constant_B) {
        load_transposed(static_cast<const float*>(b.B.data) + k * NB, channels, N, const_B);
        zero_floats(lanes_dB, NB);
      }
      if (b.constant_C) {
        load_transposed(static_cast<const float*>(b.C.data) + k * NB, channels, N, const_C);
        zero_floats(lanes_dC, NB);
      }
      all_passes<true>(p, b);
      if (b.constant_B) add_floats(lanes_dB, NB, sums.dB);
      if (b.constant_C) add_floats(lanes_dC, NB, sums.dC);
      finish_block(w, k, channels, t, rows, D_row, c, sums);
    }
    if (w.part_dB) reduce_rows(lanes_dB, rows * N, w.part_dB + t * N);
    if (w.part_dC) reduce_rows(lanes_dC, rows * N, w.part_dC + t * N);
  }
  if (w.dstate_in)
    for (int k = 0; k < w.blocks; ++k)
      store_transposed(dh + k * NB, channels_of(k), N, w.dstate_in + k * NB);
}

}  // namespace selective_scan

const ops::scan::Kernels selective_scan_kernels = {
    selective_scan::scale_A, selective_scan::scan_chunked, selective_scan::scan_step,
    selective_scan::backward};

}  // namespace krait::KRAIT_ISA
