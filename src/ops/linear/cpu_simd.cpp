#include "krait/ops/linear/kernels.h"

#include <string.h>

#include "krait/ops/simd_math.h"

namespace krait::KRAIT_ISA {

using ops::FewRows;

namespace {

constexpr hn::ScalableTag<float> kF;
constexpr hn::ScalableTag<uint32_t> kU;
using V = hn::Vec<decltype(kF)>;
constexpr int64_t kLanes = hn::MaxLanes(kF);
constexpr bool kManyRegisters = HWY_MAX_BYTES == 64;  // 32 vector registers, not 16

// Rows of x taken together, and rows of w with them: as many sums as the registers hold beside one vector
// of each row of w and of x.
constexpr int kMostRows = kManyRegisters ? 8 : 4;
constexpr int weight_rows(int M) { return M <= (kManyRegisters ? 4 : 2) ? 4 : 2; }

// Bytes of w between what is read and what is asked for. A block walks along several rows at once, which no
// hardware prefetcher follows well: it asks for the lines to come one after another as they lie in memory
// (1.5 to 1.8 times as fast as asking row by row). Into the second level: the first is x's.
constexpr int64_t kAhead = 12288;

HWY_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

HWY_INLINE uint16_t round_to_bf16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

HWY_INLINE void store(const FewRows& a, int64_t m, int64_t n, float sum) {
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
  constexpr int kSums = R * M;
  for (int i = 0; i < kSums; i += kSumsTogether) {
    V some[kSumsTogether];
    float sums[kSumsTogether] = {};
#pragma GCC unroll 4
    for (int j = 0; j < kSumsTogether; ++j)
      some[j] = i + j < kSums ? acc[(i + j) / M][(i + j) % M] : hn::Zero(kF);
    add_sums_of_lanes(kF, some, sums);
    for (int j = 0; j < kSumsTogether && i + j < kSums; ++j)
      store(a, m0 + (i + j) % M, n + (i + j) / M, sums[j]);
  }
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
    const char* ahead = reinterpret_cast<const char*>(rows[0]) + kAhead;
    int64_t k = 0;
    for (; k + kLanes <= a.K; k += kLanes) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        w[r] = hn::LoadU(kF, rows[r] + k);
        prefetch(ahead + r * sizeof(V));
      }
      ahead += R * sizeof(V);
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
    const char* ahead = reinterpret_cast<const char*>(rows[0]) + kAhead;
    int64_t k = 0;
    for (; k + 2 * kLanes <= a.K; k += 2 * kLanes) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        pairs[r] = hn::LoadU(kU, reinterpret_cast<const uint32_t*>(rows[r] + k));
        prefetch(ahead + r * sizeof(V));
      }
      ahead += R * sizeof(V);
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

#if HWY_TARGET <= HWY_AVX3
// Where the processor has products of bfloat16 pairs, x stays bfloat16, as it comes.
bool has_dot() { return __builtin_cpu_supports("avx512bf16"); }

struct DotBf16 {
  template <int M, int R>
  __attribute__((target("avx512bf16"))) static void block(const FewRows& a, int64_t m0, int64_t n) {
    const uint16_t* rows[R];
    const uint16_t* x[M];
    for (int r = 0; r < R; ++r) rows[r] = static_cast<const uint16_t*>(a.w) + (n + r) * a.K;
    for (int m = 0; m < M; ++m) x[m] = reinterpret_cast<const uint16_t*>(a.x + (m0 + m) * a.x_step);
    __m512 acc[R][M];
    __m512bh w[R];
    for (int r = 0; r < R; ++r)
      for (int m = 0; m < M; ++m) acc[r][m] = _mm512_setzero_ps();
    const char* ahead = reinterpret_cast<const char*>(rows[0]) + kAhead;
    int64_t k = 0;
    for (; k + 2 * kLanes <= a.K; k += 2 * kLanes, ahead += R * sizeof(V)) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        w[r] = (__m512bh)_mm512_loadu_si512(rows[r] + k);
        prefetch(ahead + r * sizeof(V));
      }
      multiply<M, R>(acc, w, x, k);
    }
    if (k < a.K) {  // x is padded with zeros
      for (int r = 0; r < R; ++r) {
        uint16_t last[2 * kLanes] = {};
        memcpy(last, rows[r] + k, static_cast<size_t>(a.K - k) * 2);
        w[r] = (__m512bh)_mm512_loadu_si512(last);
      }
      multiply<M, R>(acc, w, x, k);
    }
    V sums[R][M];
    for (int r = 0; r < R; ++r)
      for (int m = 0; m < M; ++m) sums[r][m] = V{acc[r][m]};
    finish<M, R>(a, sums, m0, n);
  }

 private:
  template <int M, int R>
  __attribute__((target("avx512bf16"), always_inline)) static inline void multiply(
      __m512 (&acc)[R][M], const __m512bh (&w)[R], const uint16_t* const (&x)[M], int64_t k) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const auto xv = (__m512bh)_mm512_loadu_si512(x[m] + k);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) acc[r][m] = _mm512_dpbf16_ps(acc[r][m], w[r], xv);
    }
  }
};
#else
bool has_dot() { return false; }
using DotBf16 = Bf16;
#endif

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
        case 7: some_rows<Weights, 7>(a, m, n, n_end); break;
        case 8: some_rows<Weights, 8>(a, m, n, n_end); break;
#endif
      }
    }
  }
}

void few_rows_bf16(const FewRows& a) { has_dot() ? few_rows<DotBf16>(a) : few_rows<Bf16>(a); }

void arrange(const void* x, bool x_bf16, int64_t K, float* out) {
  const bool dot = has_dot();
  if (dot && x_bf16) {
    auto* const to = reinterpret_cast<uint16_t*>(out);
    memcpy(to, x, static_cast<size_t>(K) * 2);
    for (int64_t k = K; k % (2 * kLanes) != 0; ++k) to[k] = 0;
    return;
  }
  for (int64_t k = 0; k < K; k += 2 * kLanes) {
    const int64_t count = K - k < 2 * kLanes ? K - k : 2 * kLanes;
    uint16_t run[2 * kLanes] = {};
    if (x_bf16) {
      memcpy(run, static_cast<const uint16_t*>(x) + k, static_cast<size_t>(count) * 2);
    } else {
      for (int64_t i = 0; i < count; ++i)
        run[i] = round_to_bf16(static_cast<const float*>(x)[k + i]);
    }
    if (dot) {
      memcpy(reinterpret_cast<uint16_t*>(out) + k, run, sizeof(run));
      continue;
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

extern const ops::LinearKernels linear_kernels = {few_rows<F32>, few_rows_bf16, arrange,
                                                  sum_rows<false>, sum_rows<true>};

}  // namespace krait::KRAIT_ISA
