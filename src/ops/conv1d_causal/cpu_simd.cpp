// Lanes are channels. A run walks along time in tiles of kTile tokens; the window of the last W-1 rows is
// carried from tile to tile in float32, so that states, zeros and earlier rows look alike.
#include "krait/ops/conv1d_causal/kernels.h"
#include "krait/ops/simd_math.h"

namespace krait::KRAIT_ISA {
namespace {

constexpr int kTile = 8;

// Columns [0, N) of the N-column matrix whose rows start at `p`, one lane a row.
template <int N, class D>
HWY_INLINE void load_columns(D d, const float* p, Vec<D>* v) {
  if constexpr (N == 2) {
    hn::LoadInterleaved2(d, p, v[0], v[1]);
  } else if constexpr (N == 3) {
    hn::LoadInterleaved3(d, p, v[0], v[1], v[2]);
  } else if constexpr (N == 4) {
    hn::LoadInterleaved4(d, p, v[0], v[1], v[2], v[3]);
  } else {
    const hn::RebindToSigned<D> di;
    const auto rows = hn::Mul(hn::Iota(di, 0), hn::Set(di, N));
    for (int j = 0; j < N; ++j) v[j] = hn::GatherIndex(d, p + j, rows);
  }
}

template <int N, class D>
HWY_INLINE void store_columns(D d, const Vec<D>* v, float* p) {
  if constexpr (N == 2) {
    hn::StoreInterleaved2(v[0], v[1], d, p);
  } else if constexpr (N == 3) {
    hn::StoreInterleaved3(v[0], v[1], v[2], d, p);
  } else if constexpr (N == 4) {
    hn::StoreInterleaved4(v[0], v[1], v[2], v[3], d, p);
  } else {
    const hn::RebindToSigned<D> di;
    const auto rows = hn::Mul(hn::Iota(di, 0), hn::Set(di, N));
    for (int j = 0; j < N; ++j) hn::ScatterIndex(v[j], d, p + j, rows);
  }
}

// The same of a state's columns, from element `at` on. One of bfloat16 is widened on the way.
template <int N, class D>
HWY_INLINE void load_state(D d, const ConvProblem& p, const void* state, int64_t at, Vec<D>* v) {
  if (!p.state_bf16) return load_columns<N>(d, static_cast<const float*>(state) + at, v);
  const size_t lanes = hn::Lanes(d);
  HWY_ALIGN float wide[N * hn::MaxLanes(d)];
  for (size_t i = 0; i < N; ++i)
    hn::StoreU(load(d, static_cast<const bf16*>(state) + at + i * lanes), d, wide + i * lanes);
  load_columns<N>(d, wide, v);
}

template <int N, class D>
HWY_INLINE void store_state(D d, const ConvProblem& p, const Vec<D>* v, void* state, int64_t at) {
  if (!p.state_bf16) return store_columns<N>(d, v, static_cast<float*>(state) + at);
  const size_t lanes = hn::Lanes(d);
  HWY_ALIGN float wide[N * hn::MaxLanes(d)];
  store_columns<N>(d, v, wide);
  for (size_t i = 0; i < N; ++i)
    store(d, hn::LoadU(d, wide + i * lanes), static_cast<bf16*>(state) + at + i * lanes);
}

template <class D>
HWY_INLINE Vec<D> load_or_zero(D d, const float* p, int64_t i) {
  return p ? hn::LoadU(d, p + i) : hn::Zero(d);
}

// The W-1 inputs before token `from`, oldest first, into rows kConvBlock apart.
template <int W, class T>
void load_history(const ConvProblem& p, const ConvRun& r, float* history) {
  const int64_t n = r.e1 - r.e0;
  for (int j = 0; j < W - 1; ++j) {
    const int64_t t = r.from - (W - 1) + j;
    float* row = history + j * kConvBlock;
    if (t >= r.begin) {
      const T* x = static_cast<const T*>(p.x) + t * p.x_stride + r.e0;
      for_lanes(0, n, [&](auto d, int64_t i) { hn::StoreU(load(d, x + i), d, row + i); });
    } else if (r.state_in) {
      const int64_t column = r.e0 * p.K + p.K + (t - r.begin);
      const auto read = [&](const auto* state) {
        for (int64_t i = 0; i < n; ++i) row[i] = static_cast<float>(state[column + i * p.K]);
      };
      p.state_bf16 ? read(static_cast<const bf16*>(r.state_in))
                   : read(static_cast<const float*>(r.state_in));
    } else {
      for (int64_t i = 0; i < n; ++i) row[i] = 0.0f;
    }
  }
}

// bias + Σ_w taps[w] window[w]
template <int W, class D>
HWY_INLINE Vec<D> convolve(const Vec<D>* taps, const Vec<D>* window, Vec<D> bias) {
  Vec<D> sum = bias;
#pragma GCC unroll 8
  for (int w = 0; w < W; ++w) sum = hn::MulAdd(taps[w], window[w], sum);
  return sum;
}

template <int W, int N, class T>
HWY_INLINE void forward_tile(const ConvProblem& p, const ConvRun& r, int64_t t, float* history) {
  const T* x = static_cast<const T*>(p.x) + t * p.x_stride + r.e0;
  T* y = static_cast<T*>(p.y) + t * p.y_stride + r.e0;
  for_lanes(0, r.e1 - r.e0, [&](auto d, int64_t i) {
    using V = Vec<decltype(d)>;
    V taps[W], window[W - 1 + N];
#pragma GCC unroll 8
    for (int w = 0; w < W; ++w) taps[w] = hn::LoadU(d, p.taps + w * p.E + r.e0 + i);
#pragma GCC unroll 8
    for (int j = 0; j < W - 1; ++j) window[j] = hn::LoadU(d, history + j * kConvBlock + i);
    const V bias = load_or_zero(d, p.bias, r.e0 + i);
#pragma GCC unroll 8
    for (int s = 0; s < N; ++s) {
      window[W - 1 + s] = load(d, x + s * p.x_stride + i);
      const V sum = convolve<W, decltype(d)>(taps, window + s, bias);
      store(d, p.silu ? Silu(d, sum) : sum, y + s * p.y_stride + i);
    }
#pragma GCC unroll 8
    for (int j = 0; j < W - 1; ++j) hn::StoreU(window[N + j], d, history + j * kConvBlock + i);
  });
}

template <int W, class T>
void forward_run(const ConvProblem& p, const ConvRun& r) {
  alignas(64) float history[(W - 1) * kConvBlock];
  load_history<W, T>(p, r, history);
  int64_t t = r.from;
  for (; t + kTile <= r.to; t += kTile) forward_tile<W, kTile, T>(p, r, t, history);
  for (; t < r.to; ++t) forward_tile<W, 1, T>(p, r, t, history);
}

// KC: columns of the state, W or W-1.
template <int W, int KC, class T>
void step_columns(const ConvProblem& p, const ConvRun& r, void* state_out) {
  const T* x = static_cast<const T*>(p.x) + r.begin * p.x_stride;
  T* y = static_cast<T*>(p.y) + r.begin * p.y_stride;
  for_lanes(r.e0, r.e1, [&](auto d, int64_t e) {
    using V = Vec<decltype(d)>;
    V taps[W], state[KC + 1];
    load_columns<W>(d, p.k + e * W, taps);
    if (r.state_in) {
      load_state<KC>(d, p, r.state_in, e * KC, state);
    } else {
      for (int j = 0; j < KC; ++j) state[j] = hn::Zero(d);
    }
    state[KC] = load(d, x + e);
    const V sum = convolve<W, decltype(d)>(taps, state + KC + 1 - W, load_or_zero(d, p.bias, e));
    store(d, p.silu ? Silu(d, sum) : sum, y + e);
    if (state_out) store_state<KC>(d, p, state + 1, state_out, e * KC);
  });
}

// What one tile of backward does besides carrying the two windows on.
struct BackwardTile {
  bool live = false;   // its tokens are inside the sequence: they have an input and a dy
  bool sum = false;    // their part of dk and dbias is this run's
  void* dx = nullptr;  // row of the gradient that becomes complete with the first token, or null
  const float* dstate = nullptr;  // column of d(state_out) (E, K) to add to that row, or null
  float* dhistory = nullptr;      // where that row goes if it is before the sequence, or null
};

template <int W, int N, class T>
HWY_INLINE void backward_tile(const ConvProblem& p, const ConvRun& r, int64_t t,
                              const BackwardTile& tile, float* history, float* slopes) {
  const T* x = static_cast<const T*>(p.x) + t * p.x_stride + r.e0;
  const T* dy = p.dy ? static_cast<const T*>(p.dy) + t * p.y_stride + r.e0 : nullptr;
  T* dx = tile.dx ? static_cast<T*>(tile.dx) + r.e0 : nullptr;
  for_lanes(0, r.e1 - r.e0, [&](auto d, int64_t i) {
    using V = Vec<decltype(d)>;
    V taps[W], g[W - 1 + N];  // g: gradient before the activation
#pragma GCC unroll 8
    for (int w = 0; w < W; ++w) taps[w] = hn::LoadU(d, p.taps + w * p.E + r.e0 + i);
#pragma GCC unroll 8
    for (int j = 0; j < W - 1; ++j) g[j] = hn::LoadU(d, slopes + j * kConvBlock + i);
    if (tile.live) {
      V window[W - 1 + N];
#pragma GCC unroll 8
      for (int j = 0; j < W - 1; ++j) window[j] = hn::LoadU(d, history + j * kConvBlock + i);
      const V bias = load_or_zero(d, p.bias, r.e0 + i);
#pragma GCC unroll 8
      for (int s = 0; s < N; ++s) {
        window[W - 1 + s] = load(d, x + s * p.x_stride + i);
        V gs = dy ? load(d, dy + s * p.y_stride + i) : hn::Zero(d);
        if (p.silu)
          gs = hn::Mul(gs, SiluSlope(d, convolve<W, decltype(d)>(taps, window + s, bias)));
        g[W - 1 + s] = gs;
      }
      if (tile.sum) {
        float* sums = r.sums + r.e0 + i;
#pragma GCC unroll 8
        for (int w = 0; w < W; ++w) {
          V sum = hn::LoadU(d, sums + w * p.E);
#pragma GCC unroll 8
          for (int s = 0; s < N; ++s) sum = hn::MulAdd(g[W - 1 + s], window[s + w], sum);
          hn::StoreU(sum, d, sums + w * p.E);
        }
        V sum = hn::LoadU(d, sums + W * p.E);
#pragma GCC unroll 8
        for (int s = 0; s < N; ++s) sum = hn::Add(sum, g[W - 1 + s]);
        hn::StoreU(sum, d, sums + W * p.E);
      }
#pragma GCC unroll 8
      for (int j = 0; j < W - 1; ++j) hn::StoreU(window[N + j], d, history + j * kConvBlock + i);
    } else {
      for (int s = 0; s < N; ++s) g[W - 1 + s] = hn::Zero(d);
    }
    if (dx || tile.dhistory) {
#pragma GCC unroll 8
      for (int s = 0; s < N; ++s) {  // the gradient of token t + s - (W-1)
        V sum = hn::Mul(taps[0], g[W - 1 + s]);
#pragma GCC unroll 8
        for (int w = 1; w < W; ++w) sum = hn::MulAdd(taps[w], g[W - 1 + s - w], sum);
        if (tile.dstate) {
          const hn::RebindToSigned<decltype(d)> di;
          const auto rows = hn::Mul(hn::Iota(di, 0), hn::Set(di, static_cast<int32_t>(p.K)));
          sum = hn::Add(sum, hn::GatherIndex(d, tile.dstate + (r.e0 + i) * p.K, rows));
        }
        if (dx) {
          T* out = dx + s * p.dx_stride + i;
          store(d, p.dx_add ? hn::Add(load(d, out), sum) : sum, out);
        } else {
          hn::StoreU(sum, d, tile.dhistory + r.e0 + i);
        }
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < W - 1; ++j) hn::StoreU(g[N + j], d, slopes + j * kConvBlock + i);
  });
}

// The gradient of an input is complete W-1 tokens later: the run goes on for that long past its end, and
// past the end of the sequence with zeros.
template <int W, class T>
void backward_run(const ConvProblem& p, const ConvRun& r) {
  alignas(64) float history[(W - 1) * kConvBlock], slopes[(W - 1) * kConvBlock];
  load_history<W, T>(p, r, history);
  for (float& g : slopes) g = 0.0f;
  const int64_t stop = r.to + W - 1;
  // Rows from here on hear from the state that is handed out.
  const int64_t into_state = r.dstate_out ? r.end - p.K : r.end;
  int64_t t = r.from;
  while (t < stop) {
    const int64_t row = t - (W - 1);  // completed by token t
    BackwardTile tile;
    tile.live = t < r.end;
    tile.sum = r.sums && t < r.to;
    if (row >= r.from) {
      if (p.dx) tile.dx = static_cast<T*>(p.dx) + row * p.dx_stride;
      if (row >= into_state) tile.dstate = r.dstate_out + (row - into_state);
    } else if (row < r.begin && r.from == r.begin && r.dhistory) {
      tile.dhistory = r.dhistory + (row - r.begin + W - 1) * p.E;
    }
    if (row >= r.from && t + kTile <= r.to && row + kTile <= into_state) {
      backward_tile<W, kTile, T>(p, r, t, tile, history, slopes);
      t += kTile;
    } else {
      backward_tile<W, 1, T>(p, r, t, tile, history, slopes);
      t += 1;
    }
  }
}

template <int W, int KC>
void step_state(const ConvProblem& p, const ConvRun& r, void* state_out) {
  p.bf16 ? step_columns<W, KC, bf16>(p, r, state_out) : step_columns<W, KC, float>(p, r, state_out);
}

// f<W>() for the width of the problem.
template <class F>
void of_width(const ConvProblem& p, const F& f) {
  switch (p.width) {
    case 2: return f.template operator()<2>();
    case 3: return f.template operator()<3>();
    case 4: return f.template operator()<4>();
    case 5: return f.template operator()<5>();
    case 6: return f.template operator()<6>();
    case 7: return f.template operator()<7>();
    default: return f.template operator()<8>();
  }
}

void forward(const ConvProblem& p, const ConvRun& r) {
  of_width(p, [&]<int W>() { p.bf16 ? forward_run<W, bf16>(p, r) : forward_run<W, float>(p, r); });
}

void step(const ConvProblem& p, const ConvRun& r, void* state_out) {
  of_width(p, [&]<int W>() {
    p.K == W ? step_state<W, W>(p, r, state_out) : step_state<W, W - 1>(p, r, state_out);
  });
}

void backward(const ConvProblem& p, const ConvRun& r) {
  of_width(p,
           [&]<int W>() { p.bf16 ? backward_run<W, bf16>(p, r) : backward_run<W, float>(p, r); });
}

}  // namespace

extern const ConvKernels conv_kernels = {forward, step, backward};

}  // namespace krait::KRAIT_ISA
