#include "krait/ops/linear/kernels.h"

#include <string.h>

#include "hwy/cache_control.h"
#include "hwy/highway.h"

namespace krait::KRAIT_ISA {

namespace hn = hwy::HWY_NAMESPACE;
using ops::FewRows;

namespace {

constexpr hn::ScalableTag<float> kF;
constexpr hn::ScalableTag<uint32_t> kU;
using V = hn::Vec<decltype(kF)>;
constexpr int64_t kLanes = hn::MaxLanes(kF);
constexpr bool kManyRegisters = HWY_MAX_BYTES == 64;  // 32 vector registers, not 16

// Rows of x taken together, and rows of w with them: as many sums as the registers hold beside one vector
// of each row of w. (Measured: with three rows of w the compiler loads x once for each of them.)
constexpr int kMostRows = kManyRegisters ? 6 : 4;
constexpr int weight_rows(int M) { return kManyRegisters || M <= 2 ? 4 : 2; }

uint16_t round_to_bf16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

void store(const FewRows& a, int64_t m, int64_t n, float sum) {
  if (a.bias) sum += a.bias[n];
  if (a.plus) sum += a.plus[m * a.plus_step + n];
  if (a.y_bf16) {
    static_cast<uint16_t*>(a.y)[m * a.y_step + n] = round_to_bf16(sum);
  } else {
    static_cast<float*>(a.y)[m * a.y_step + n] = sum;
  }
}

template <int M, int R>
HWY_INLINE void accumulate(V (&acc)[R][M], const V (&w)[R], const float* const (&x)[M], int64_t k) {
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    const V xv = hn::LoadU(kF, x[m] + k);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) acc[r][m] = hn::MulAdd(xv, w[r], acc[r][m]);
  }
}

template <int M, int R>
HWY_INLINE void finish(const FewRows& a, V (&acc)[R][M], int64_t m0, int64_t n) {
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) store(a, m0 + m, n + r, hn::GetLane(hn::SumOfLanes(kF, acc[r][m])));
}

template <int M, int R>
HWY_INLINE void clear(V (&acc)[R][M]) {
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) acc[r][m] = hn::Zero(kF);
}

struct F32 {
  template <int M, int R>
  static HWY_INLINE void block(const FewRows& a, int64_t m0, int64_t n) {
    const float* rows[R];
    const float* x[M];
    for (int r = 0; r < R; ++r) rows[r] = static_cast<const float*>(a.w) + (n + r) * a.K;
    for (int m = 0; m < M; ++m) x[m] = a.x + (m0 + m) * a.x_step;
    V acc[R][M], w[R];
    clear<M, R>(acc);
    int64_t k = 0;
    for (; k + kLanes <= a.K; k += kLanes) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        w[r] = hn::LoadU(kF, rows[r] + k);
        hwy::Prefetch(rows[r] + k + 2 * R * a.K);  // rows to come: they follow in memory
      }
      accumulate<M, R>(acc, w, x, k);
    }
    if (k < a.K) {
      const size_t bytes = static_cast<size_t>(a.K - k) * 4;
      float last[kLanes] = {}, x_last[M][kLanes] = {};
      const float* xs[M];
      for (int m = 0; m < M; ++m) {
        memcpy(x_last[m], x[m] + k, bytes);
        xs[m] = x_last[m];
      }
      for (int r = 0; r < R; ++r) {
        memcpy(last, rows[r] + k, bytes);
        w[r] = hn::LoadU(kF, last);
      }
      accumulate<M, R>(acc, w, xs, 0);
    }
    finish<M, R>(a, acc, m0, n);
  }
};

struct Bf16 {
  template <int R>
  static HWY_INLINE void even(V (&w)[R], const hn::Vec<decltype(kU)> (&pairs)[R]) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) w[r] = hn::BitCast(kF, hn::ShiftLeft<16>(pairs[r]));
  }
  template <int R>
  static HWY_INLINE void odd(V (&w)[R], const hn::Vec<decltype(kU)> (&pairs)[R]) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) w[r] = hn::BitCast(kF, hn::And(pairs[r], hn::Set(kU, 0xffff0000u)));
  }

  template <int M, int R>
  static HWY_INLINE void block(const FewRows& a, int64_t m0, int64_t n) {
    const uint16_t* rows[R];
    const float* x[M];
    for (int r = 0; r < R; ++r) rows[r] = static_cast<const uint16_t*>(a.w) + (n + r) * a.K;
    for (int m = 0; m < M; ++m) x[m] = a.x + (m0 + m) * a.x_step;
    V acc[R][M], w[R];
    hn::Vec<decltype(kU)> pairs[R];
    clear<M, R>(acc);
    int64_t k = 0;
    for (; k + 2 * kLanes <= a.K; k += 2 * kLanes) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        pairs[r] = hn::LoadU(kU, reinterpret_cast<const uint32_t*>(rows[r] + k));
        hwy::Prefetch(rows[r] + k + 2 * R * a.K);  // rows to come: they follow in memory
      }
      even<R>(w, pairs);
      accumulate<M, R>(acc, w, x, k);
      odd<R>(w, pairs);
      accumulate<M, R>(acc, w, x, k + kLanes);
    }
    if (k < a.K) {  // x is padded with zeros
      for (int r = 0; r < R; ++r) {
        uint32_t last[kLanes] = {};
        memcpy(last, rows[r] + k, static_cast<size_t>(a.K - k) * 2);
        pairs[r] = hn::LoadU(kU, last);
      }
      even<R>(w, pairs);
      accumulate<M, R>(acc, w, x, k);
      odd<R>(w, pairs);
      accumulate<M, R>(acc, w, x, k + kLanes);
    }
    finish<M, R>(a, acc, m0, n);
  }
};

template <class Weights, int M>
HWY_INLINE void some_rows(const FewRows& a, int64_t m0, int64_t n, int64_t n_end) {
  constexpr int R = weight_rows(M);
  for (; n + R <= n_end; n += R) Weights::template block<M, R>(a, m0, n);
  for (; n < n_end; ++n) Weights::template block<M, 1>(a, m0, n);
}

// Groups of rows of x go one after another over a few rows of w, which all but the first find in L1.
template <class Weights>
void few_rows(const FewRows& a) {
  const int64_t groups = (a.M + kMostRows - 1) / kMostRows;
  const int64_t step = groups == 1 ? a.end - a.begin : 4;
  for (int64_t n = a.begin; n < a.end; n += step) {
    const int64_t n_end = n + step < a.end ? n + step : a.end;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t m = g * a.M / groups;
      switch ((g + 1) * a.M / groups - m) {
        case 1: some_rows<Weights, 1>(a, m, n, n_end); break;
        case 2: some_rows<Weights, 2>(a, m, n, n_end); break;
        case 3: some_rows<Weights, 3>(a, m, n, n_end); break;
        case 4: some_rows<Weights, 4>(a, m, n, n_end); break;
#if HWY_MAX_BYTES == 64
        case 5: some_rows<Weights, 5>(a, m, n, n_end); break;
        case 6: some_rows<Weights, 6>(a, m, n, n_end); break;
#endif
      }
    }
  }
}

void arrange(const void* x, bool x_bf16, int64_t K, float* out) {
  for (int64_t k = 0; k < K; k += 2 * kLanes) {
    const int64_t count = K - k < 2 * kLanes ? K - k : 2 * kLanes;
    uint16_t run[2 * kLanes] = {};
    if (x_bf16) {
      memcpy(run, static_cast<const uint16_t*>(x) + k, static_cast<size_t>(count) * 2);
    } else {
      for (int64_t i = 0; i < count; ++i)
        run[i] = round_to_bf16(static_cast<const float*>(x)[k + i]);
    }
    uint32_t pairs[kLanes];
    memcpy(pairs, run, sizeof(run));
    const auto both = hn::LoadU(kU, pairs);
    hn::StoreU(hn::BitCast(kF, hn::ShiftLeft<16>(both)), kF, out + k);
    hn::StoreU(hn::BitCast(kF, hn::And(both, hn::Set(kU, 0xffff0000u))), kF, out + k + kLanes);
  }
}

template <bool kBf16>
void sum_rows(const void* rows, int64_t step, int64_t count, int64_t n, float* out, bool add) {
  if (!add) memset(out, 0, static_cast<size_t>(n) * sizeof(float));
  for (int64_t r = 0; r < count; ++r) {
    if constexpr (kBf16) {
      const uint16_t* row = static_cast<const uint16_t*>(rows) + r * step;
      for (int64_t i = 0; i < n; ++i) {
        const uint32_t u = static_cast<uint32_t>(row[i]) << 16;
        float f;
        memcpy(&f, &u, 4);
        out[i] += f;
      }
    } else {
      const float* row = static_cast<const float*>(rows) + r * step;
      for (int64_t i = 0; i < n; ++i) out[i] += row[i];
    }
  }
}

}  // namespace

extern const ops::LinearKernels linear_kernels = {few_rows<F32>, few_rows<Bf16>, arrange,
                                                  sum_rows<false>, sum_rows<true>};

}  // namespace krait::KRAIT_ISA
