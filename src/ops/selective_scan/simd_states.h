// Private to cpu_simd.cpp: the recurrence and its adjoint over one chunk of time.
#pragma once
#include <hwy/highway.h>

#include "krait/ops/selective_scan/simd_rows.h"

namespace krait::KRAIT_ISA::selective_scan {

// B or C as the passes read it: at + t * step + n * column. Varying over time: one float for all
// channels. Constant: a row over channels.
struct Operand {
  const float* at = nullptr;
  int64_t step = 0;
  int64_t column = 1;
};

// The float32 values of steps t0.. of B or C, N a step; converted into `buffer` where they are bfloat16.
static Operand varying(const ops::Rows& in, int64_t t0, int64_t rows, int64_t N, float* buffer) {
  if (!in.bf16) return {static_cast<const float*>(in.data) + t0 * in.stride, in.stride, 1};
  const bf16* p = static_cast<const bf16*>(in.data) + t0 * in.stride;
  for (int64_t t = 0; t < rows; ++t)
    for_lanes(0, N, [&](auto tag, int64_t n) {
      store(tag, load(tag, p + t * in.stride + n), buffer + t * N + n);
    });
  return {buffer, N, 1};
}

template <bool kVaries>
static HWY_INLINE V operand(const float* p, int64_t n, int v) {
  if constexpr (kVaries) return hn::Set(d, p[n]);
  return hn::LoadU(d, p + n * kBlock + v);
}

// What the passes over a group of states of one chunk read and write; rows of kBlock floats.
struct Pass {
  int64_t rows;
  const float *A, *delta, *x, *g;  // A at the first state of the group
  Operand B, C;                    // likewise
  float *h, *y;                    // h at the first state
  // Backward only. history and decay: (rows, states of the group); sums at the first state of the group,
  // dB and dC with `sum_step` floats from step to step.
  float *history, *decay, *dh, *dA, *dB, *dC, *s_B, *s_A;
  int64_t dB_step, dC_step;
};

// h = exp2(Δ A) h + x B and y += C h for kStates states over the chunk. kKeep: leaves h before each step
// and the decays behind, and adds g h to dC.
template <int kStates, bool kVaryB, bool kVaryC, bool kKeep>
static void forward_states(const Pass& p) {
  for_row([&](int v) {
    V h[kStates];
#pragma GCC unroll 16
    for (int n = 0; n < kStates; ++n) h[n] = at(p.h + n * kBlock, v);
    for (int64_t t = 0; t < p.rows; ++t) {
      const V delta = at(p.delta + t * kBlock, v), x = at(p.x + t * kBlock, v);
      const float* B = p.B.at + t * p.B.step;
      const float* C = p.C.at + t * p.C.step;
      V y = hn::Zero(d);  // of this group: with many states y is a sum of short sums
#pragma GCC unroll 16
      for (int n = 0; n < kStates; ++n) {
        const V a = Exp2(hn::Mul(delta, at(p.A + n * kBlock, v)));
        if constexpr (kKeep) {
          hn::StoreU(h[n], d, p.history + (t * kStates + n) * kBlock + v);
          hn::StoreU(a, d, p.decay + (t * kStates + n) * kBlock + v);
        }
        h[n] = hn::MulAdd(a, h[n], hn::Mul(x, operand<kVaryB>(B, n, v)));
        y = hn::MulAdd(operand<kVaryC>(C, n, v), h[n], y);
        if constexpr (kKeep) {
          float* dC = p.dC + t * p.dC_step + n * kBlock + v;
          hn::StoreU(hn::MulAdd(at(p.g + t * kBlock, v), h[n], hn::LoadU(d, dC)), d, dC);
        }
      }
      hn::StoreU(hn::Add(at(p.y + t * kBlock, v), y), d, p.y + t * kBlock + v);
    }
#pragma GCC unroll 16
    for (int n = 0; n < kStates; ++n) hn::StoreU(h[n], d, p.h + n * kBlock + v);
  });
}

// The adjoint, last step first. k = dL/dh_t = C g + exp(ΔA) k of the step after;
// s_B = Σ_n k B, s_A = Σ_n A k exp(ΔA) h_{t-1}, dA += Δ k exp(ΔA) h_{t-1}, dB += k x.
template <int kStates, bool kVaryB, bool kVaryC>
static void backward_states(const Pass& p) {
  for_row([&](int v) {
    V dh[kStates], dA[kStates];
#pragma GCC unroll 16
    for (int n = 0; n < kStates; ++n) {
      dh[n] = at(p.dh + n * kBlock, v);
      dA[n] = hn::Zero(d);
    }
    for (int64_t t = p.rows - 1; t >= 0; --t) {
      const V delta = at(p.delta + t * kBlock, v), x = at(p.x + t * kBlock, v),
              g = at(p.g + t * kBlock, v);
      const float* B = p.B.at + t * p.B.step;
      const float* C = p.C.at + t * p.C.step;
      V s_B = at(p.s_B + t * kBlock, v), s_A = at(p.s_A + t * kBlock, v);
#pragma GCC unroll 16
      for (int n = 0; n < kStates; ++n) {
        const V k = hn::MulAdd(operand<kVaryC>(C, n, v), g, dh[n]);
        float* dB = p.dB + t * p.dB_step + n * kBlock + v;
        hn::StoreU(hn::MulAdd(k, x, hn::LoadU(d, dB)), d, dB);
        s_B = hn::MulAdd(k, operand<kVaryB>(B, n, v), s_B);
        dh[n] = hn::Mul(k, at(p.decay + (t * kStates + n) * kBlock, v));
        const V w = hn::Mul(dh[n], at(p.history + (t * kStates + n) * kBlock, v));
        s_A = hn::MulAdd(w, at(p.A + n * kBlock, v), s_A);
        dA[n] = hn::MulAdd(w, delta, dA[n]);
      }
      hn::StoreU(s_B, d, p.s_B + t * kBlock + v);
      hn::StoreU(s_A, d, p.s_A + t * kBlock + v);
    }
#pragma GCC unroll 16
    for (int n = 0; n < kStates; ++n) {
      hn::StoreU(dh[n], d, p.dh + n * kBlock + v);
      float* sum = p.dA + n * kBlock + v;
      hn::StoreU(hn::Add(hn::LoadU(d, sum), dA[n]), d, sum);
    }
  });
}

template <int kStates, bool kVaryB, bool kVaryC, bool kBackward>
static void pass(const Pass& p) {
  forward_states<kStates, kVaryB, kVaryC, kBackward>(p);
  if constexpr (kBackward) backward_states<kStates, kVaryB, kVaryC>(p);
}

static Pass from_state(const Pass& p, int64_t n) {
  Pass q = p;
  q.A += n * kBlock;
  q.B.at += n * q.B.column;
  q.C.at += n * q.C.column;
  q.h += n * kBlock;
  if (q.dh) {
    q.dh += n * kBlock;
    q.dA += n * kBlock;
    q.dB += n * kBlock;
    q.dC += n * kBlock;
  }
  return q;
}

// All N states in groups. The rarer constant B or C go one state at a time.
template <bool kBackward>
static void passes(const Pass& p, int64_t N, bool constant_B, bool constant_C) {
  constexpr int kMost = kBackward ? scan::kBackwardStates : kForwardStates;
  int64_t n = 0;
  if (constant_B || constant_C) {
    for (; n < N; ++n) {
      const Pass q = from_state(p, n);
      if (constant_B && constant_C) {
        pass<1, false, false, kBackward>(q);
      } else if (constant_B) {
        pass<1, false, true, kBackward>(q);
      } else {
        pass<1, true, false, kBackward>(q);
      }
    }
    return;
  }
  for (; n + kMost <= N; n += kMost) pass<kMost, true, true, kBackward>(from_state(p, n));
  for (; n + 4 <= N; n += 4) pass<4, true, true, kBackward>(from_state(p, n));
  for (; n < N; ++n) pass<1, true, true, kBackward>(from_state(p, n));
}

}  // namespace krait::KRAIT_ISA::selective_scan
