// Forward: a block of query rows stays, tiles of keys pass by. Backward: a tile of keys stays, blocks of
// query rows pass by. One token: see `step`.
#include <math.h>

#include "krait/ops/attention/simd_tiles.h"

namespace krait::KRAIT_ISA {
namespace {

constexpr int64_t kKeys = kAttentionKeys, kMaxHead = kAttentionMaxHead;

// The part of a tile of keys that a token at position t sees, [low, high) counted from the tile's first key.
struct Seen {
  int64_t low, high;
};

HWY_INLINE Seen seen(const AttentionProblem& p, int64_t t, int64_t first_key, int64_t keys) {
  Seen s{0, keys};
  if (p.causal && t + 1 - first_key < keys) s.high = t + 1 - first_key;
  if (p.window > 0 && t - p.window + 1 > first_key) s.low = t - p.window + 1 - first_key;
  return s;
}

// Rows of queries: token `row % tokens` of head `row / tokens` of the key head's group.
struct Rows {
  int64_t tokens, first;  // first: the position of the first token
  int64_t position(int64_t row) const { return first + row % tokens; }
};

bool any_seen(const AttentionProblem& p, const Rows& rows, int64_t begin, int64_t end, int64_t key,
              int64_t keys) {
  for (int64_t r = begin; r < end; ++r) {
    const Seen s = seen(p, rows.position(r), key, keys);
    if (s.low < s.high) return true;
  }
  return false;
}

// Scores outside of what a row sees become `value`.
HWY_INLINE void mask(float* scores, Seen s, float value) {
  for (int64_t j = 0; j < s.low && j < kKeys; ++j) scores[j] = value;
  for (int64_t j = s.high > 0 ? s.high : 0; j < kKeys; ++j) scores[j] = value;
}

// kCount scores into weights exp(score - now), now the largest score so far: sum goes on, and what was summed before
// is to be multiplied by the factor that is returned.
template <int64_t kCount>
HWY_INLINE float weigh(float* scores, float now, float& largest, float& sum) {
  const Lanes d;
  auto total = hn::Zero(d);
  for (int64_t j = 0; j < kCount; j += kTileLanes) {
    const auto e = Exp(d, hn::Sub(hn::LoadU(d, scores + j), hn::Set(d, now)));
    total = hn::Add(total, e);
    hn::StoreU(e, d, scores + j);
  }
  const float factor = now == largest ? 1.0f : exp_of(largest - now);
  sum = sum * factor + sum_lanes(d, total);
  largest = now;
  return factor;
}

// One row of kKeys scores into weights exp(score - largest): the running largest score and sum go on, and
// what the row has summed so far is to be multiplied by the factor that is returned.
HWY_INLINE float advance_row(float* scores, float& largest, float& sum) {
  const Lanes d;
  auto most = hn::LoadU(d, scores);
  for (int64_t j = kTileLanes; j < kKeys; j += kTileLanes)
    most = hn::Max(most, hn::LoadU(d, scores + j));
  const float tile = hn::GetLane(hn::MaxOfLanes(d, most));
  return weigh<kKeys>(scores, tile > largest ? tile : largest, largest, sum);
}

HWY_INLINE void scale_row(float* x, int64_t n, float factor) {
  const Lanes d;
  for (int64_t i = 0; i < n; i += kTileLanes)
    hn::StoreU(hn::Mul(hn::LoadU(d, x + i), hn::Set(d, factor)), d, x + i);
}

// The keys and values of a tile of a run, head by head.
template <class T>
struct TileOf {
  const T *k, *v;
  TileOf(const KeyRun& run, int64_t key, int64_t head)
      : k(static_cast<const T*>(run.k) + (key - run.begin) * run.k_row + head * run.k_head),
        v(static_cast<const T*>(run.v) + (key - run.begin) * run.v_row + head * run.v_head) {}
};

template <class F>
HWY_INLINE void with_type(bool is_bf16, const F& f) {
  if (is_bf16) {
    f(static_cast<bf16*>(nullptr));
  } else {
    f(static_cast<float*>(nullptr));
  }
}

void forward(const AttentionProblem& p, const AttentionSequence& s, int64_t key_head, int64_t from,
             int64_t to) {
  alignas(64) float q[kAttentionRows * kMaxHead], y[kAttentionRows * kMaxHead];
  alignas(64) float k[kMaxHead * kKeys], v[kKeys * kMaxHead], scores[kKeys * kKeys];
  float largest[kAttentionRows], sum[kAttentionRows];
  const int64_t group = p.group(), P = p.P, padded = p.padded();
  const Rows rows{to - from, s.first + from};
  const int64_t n = group * rows.tokens, head0 = key_head * group;
  with_type(p.bf16, [&]<class T>(T*) {
    for (int64_t g = 0; g < group; ++g)
      load_rows(static_cast<const T*>(s.q) + from * p.q_token + (head0 + g) * p.q_head, p.q_token,
                rows.tokens, P, padded, p.scale, q + g * rows.tokens * padded);
  });
  for (int64_t i = 0; i < n * padded; ++i) y[i] = 0;
  for (int64_t r = 0; r < n; ++r) largest[r] = -INFINITY, sum[r] = 0;

  for (int i = 0; i < s.n_runs; ++i) {
    const KeyRun& run = s.runs[i];
    for (int64_t key = run.begin; key < run.end; key += kKeys) {
      const int64_t keys = run.end - key < kKeys ? run.end - key : kKeys;
      if (!any_seen(p, rows, 0, n, key, keys)) continue;
      with_type(run.bf16, [&]<class T>(T*) {
        const TileOf<T> tile(run, key, key_head);
        load_columns(tile.k, run.k_row, keys, P, k);
        load_rows(tile.v, run.v_row, keys, P, padded, 1, v);
      });
      for (int64_t r0 = 0; r0 < n; r0 += kKeys) {
        const int64_t r1 = r0 + kKeys < n ? r0 + kKeys : n;
        if (!any_seen(p, rows, r0, r1, key, keys)) continue;
        product(r1 - r0, kKeys, P, {q + r0 * padded, padded, 1}, k, kKeys, scores, kKeys, false);
        for (int64_t r = r0; r < r1; ++r) {
          float* row = scores + (r - r0) * kKeys;
          const Seen see = seen(p, rows.position(r), key, keys);
          if (see.low >= see.high) {
            mask(row, {0, 0}, 0);
            continue;
          }
          mask(row, see, -INFINITY);
          const float factor = advance_row(row, largest[r], sum[r]);
          if (factor != 1.0f) scale_row(y + r * padded, padded, factor);
        }
        product(r1 - r0, padded, keys, {scores, kKeys, 1}, v, padded, y + r0 * padded, padded,
                true);
      }
    }
  }
  for (int64_t r = 0; r < n; ++r) {
    const int64_t place = (from + r % rows.tokens) * p.H + head0 + r / rows.tokens;
    with_type(p.bf16, [&]<class T>(T*) {
      store_row(y + r * padded, P, 1 / sum[r], false, static_cast<T*>(s.y) + place * P);
    });
    if (s.norm) s.norm[2 * place] = largest[r], s.norm[2 * place + 1] = 1 / sum[r];
  }
}

// What backward holds of a block of tokens of one head.
struct QueryBlock {
  alignas(64) float q[kKeys * kMaxHead], dy[kKeys * kMaxHead];
};

void load_block(const AttentionProblem& p, const AttentionSequence& s, int64_t head, int64_t from,
                int64_t n, QueryBlock& block) {
  with_type(p.bf16, [&]<class T>(T*) {
    load_rows(static_cast<const T*>(s.q) + from * p.q_token + head * p.q_head, p.q_token, n, p.P,
              p.padded(), p.scale, block.q);
    load_rows(static_cast<const T*>(s.dy) + (from * p.H + head) * p.P, p.H * p.P, n, p.P,
              p.padded(), 1, block.dy);
  });
}

// scores -> weights p = exp(score - largest) / sum and, with them, dy·v -> p (dy·v - delta): 0 to the bit for a
// token that sees one key, whose y is v.
void weigh(const AttentionProblem& p, const AttentionSequence& s, int64_t head, int64_t from,
           int64_t n, int64_t key, int64_t keys, float* weights, float* dscores) {
  const Lanes d;
  for (int64_t i = 0; i < n; ++i) {
    float *w = weights + i * kKeys, *ds = dscores + i * kKeys;
    const int64_t place = (from + i) * p.H + head;
    const Seen see = seen(p, s.first + from + i, key, keys);
    mask(w, see.low < see.high ? see : Seen{0, 0}, -INFINITY);
    const auto largest = hn::Set(d, s.norm[2 * place]),
               over_sum = hn::Set(d, s.norm[2 * place + 1]), delta = hn::Set(d, s.delta[place]);
    for (int64_t j = 0; j < kKeys; j += kTileLanes) {
      const auto e = hn::Mul(Exp(d, hn::Sub(hn::LoadU(d, w + j), largest)), over_sum);
      hn::StoreU(e, d, w + j);
      hn::StoreU(hn::Mul(e, hn::Sub(hn::LoadU(d, ds + j), delta)), d, ds + j);
    }
  }
}

// Adds what the gradient of the cache handed out says of positions [key, key + keys). Last, since it may be
// far larger than what single tokens add.
void add_passed(const AttentionProblem& p, const AttentionSequence& s, const float* passed,
                int64_t head, int64_t key, int64_t keys, float* sums) {
  if (!passed) return;
  for (int64_t j = 0; j < keys; ++j) {
    if (key + j < s.first + s.tokens - s.C_out) continue;  // overwritten by later tokens
    const float* from = passed + ((key + j) % s.C_out * p.Hkv + head) * p.P;
    for (int64_t i = 0; i < p.P; ++i) sums[j * p.padded() + i] += from[i];
  }
}

template <class T>
void hand_out(const AttentionProblem& p, const float* sums, int64_t keys, T* to, int64_t to_row,
              bool add) {
  for (int64_t j = 0; j < keys; ++j) store_row(sums + j * p.padded(), p.P, 1, add, to + j * to_row);
}

void add_up_dy_y(const AttentionProblem& p, const AttentionSequence& s, int64_t head) {
  alignas(64) float y[kMaxHead], dy[kMaxHead];
  for (int64_t t = 0; t < s.tokens; ++t) {
    const int64_t place = t * p.H + head;
    with_type(p.bf16, [&]<class T>(T*) {
      load_rows(static_cast<const T*>(s.y) + place * p.P, 0, 1, p.P, p.padded(), 1, y);
      load_rows(static_cast<const T*>(s.dy) + place * p.P, 0, 1, p.P, p.padded(), 1, dy);
    });
    s.delta[place] = dot(dy, y, p.P);
  }
}

void backward(const AttentionProblem& p, const AttentionSequence& s, int64_t key_head) {
  alignas(64) float k[kKeys * kMaxHead], k_columns[kMaxHead * kKeys], v_columns[kMaxHead * kKeys];
  alignas(64) float dk[kKeys * kMaxHead], dv[kKeys * kMaxHead];
  alignas(64) float weights[kKeys * kKeys], dscores[kKeys * kKeys];
  QueryBlock block;
  const int64_t group = p.group(), P = p.P, padded = p.padded(), head0 = key_head * group;
  for (int64_t h = head0; h < head0 + group; ++h) {
    if (s.dy) add_up_dy_y(p, s, h);
    for (int64_t t = 0; t < s.tokens; ++t)
      for (int64_t i = 0; i < padded; ++i) s.dq_sum[(t * p.H + h) * padded + i] = 0;
  }
  for (int i = 0; i < s.n_runs; ++i) {
    const KeyRun& run = s.runs[i];
    for (int64_t key = run.begin; key < run.end; key += kKeys) {
      const int64_t keys = run.end - key < kKeys ? run.end - key : kKeys;
      for (int64_t j = 0; j < keys * padded; ++j) dk[j] = dv[j] = 0;
      with_type(run.bf16, [&]<class T>(T*) {
        const TileOf<T> tile(run, key, key_head);
        load_columns(tile.k, run.k_row, keys, P, k_columns);
        load_columns(tile.v, run.v_row, keys, P, v_columns);
        load_rows(tile.k, run.k_row, keys, P, padded, 1, k);
      });
      for (int64_t h = head0; s.dy && h < head0 + group; ++h) {
        for (int64_t t = 0; t < s.tokens; t += kKeys) {
          const int64_t n = s.tokens - t < kKeys ? s.tokens - t : kKeys;
          if (!any_seen(p, {n, s.first + t}, 0, n, key, keys)) continue;
          load_block(p, s, h, t, n, block);
          product(n, kKeys, P, {block.q, padded, 1}, k_columns, kKeys, weights, kKeys, false);
          product(n, kKeys, P, {block.dy, padded, 1}, v_columns, kKeys, dscores, kKeys, false);
          weigh(p, s, h, t, n, key, keys, weights, dscores);
          product(keys, padded, n, {weights, 1, kKeys}, block.dy, padded, dv, padded, true);
          product(keys, padded, n, {dscores, 1, kKeys}, block.q, padded, dk, padded, true);
          product(n, padded, keys, {dscores, kKeys, 1}, k, padded,
                  s.dq_sum + (t * p.H + h) * padded, p.H * padded, true);
        }
      }
      add_passed(p, s, s.dk_out, key_head, key, keys, dk);
      add_passed(p, s, s.dv_out, key_head, key, keys, dv);
      with_type(run.bf16, [&]<class T>(T*) {
        const int64_t row = key - run.begin;
        if (run.dk)
          hand_out(p, dk, keys, static_cast<T*>(run.dk) + row * run.k_row + key_head * run.k_head,
                   run.k_row, run.add_k);
        if (run.dv)
          hand_out(p, dv, keys, static_cast<T*>(run.dv) + row * run.v_row + key_head * run.v_head,
                   run.v_row, run.add_v);
      });
    }
  }
  if (!s.dq) return;
  for (int64_t h = head0; h < head0 + group; ++h)
    for (int64_t t = 0; t < s.tokens; ++t)
      with_type(p.bf16, [&]<class T>(T*) {
        store_row(s.dq_sum + (t * p.H + h) * padded, P, p.scale, s.add_q,
                  static_cast<T*>(s.dq) + t * p.q_token + h * p.q_head);
      });
}

constexpr int64_t kStepKeys = 16;  // of a tile: rows of keys that are read side by side

template <class T>
HWY_INLINE float score(const float* q, const T* k, int64_t P) {
  const Lanes d;
  auto sum = hn::Zero(d);
  float rest = 0;
  for_lanes(0, P, [&](auto t, int64_t i) HWY_ATTR {
    if constexpr (hn::MaxLanes(t) == kTileLanes) {
      sum = hn::MulAdd(hn::LoadU(t, q + i), load(t, k + i), sum);
    } else {
      rest += q[i] * static_cast<float>(k[i]);
    }
  });
  return sum_lanes(d, sum) + rest;
}

// The values of a tile, weighted, onto one head's sums, which are first multiplied by `factor`.
template <class T>
HWY_INLINE void add_values(const float* weights, const T* v, int64_t v_row, int64_t keys, int64_t P,
                           float factor, float* y) {
  for_lanes(0, P, [&](auto d, int64_t i) HWY_ATTR {
    auto sum = hn::Mul(hn::LoadU(d, y + i), hn::Set(d, factor));
    for (int64_t j = 0; j < keys; ++j)
      sum = hn::MulAdd(hn::Set(d, weights[j]), load(d, v + j * v_row + i), sum);
    hn::StoreU(sum, d, y + i);
  });
}

// The next largest score and sum of a head after `keys` more scores, which become weights.
HWY_INLINE float advance_head(float* scores, int64_t keys, float& largest, float& sum) {
  float now = largest;
  for (int64_t j = 0; j < keys; ++j) now = scores[j] > now ? scores[j] : now;
  for (int64_t j = keys; j < kStepKeys; ++j) scores[j] = -INFINITY;
  return weigh<kStepKeys>(scores, now, largest, sum);
}

template <class T>
void step_tile(const AttentionProblem& p, const KeyRun& run, const float* q, int64_t key,
               int64_t keys, const AttentionPart& part) {
  alignas(64) float scores[kAttentionMaxHeads * kStepKeys];
  const int64_t group = p.group();
  for (int64_t j = 0; j < keys; ++j) {
    const T* k = TileOf<T>(run, key + j, 0).k;
    for (int64_t h = 0; h < p.H; ++h)
      scores[h * kStepKeys + j] = score(q + h * p.P, k + h / group * run.k_head, p.P);
  }
  const T* v = TileOf<T>(run, key, 0).v;
  for (int64_t h = 0; h < p.H; ++h) {
    float* row = scores + h * kStepKeys;
    const float factor = advance_head(row, keys, part.largest[h], part.sum[h]);
    add_values(row, v + h / group * run.v_head, run.v_row, keys, p.P, factor, part.y + h * p.P);
  }
}

void step(const AttentionProblem& p, const AttentionSequence& s, const float* q, int64_t begin,
          int64_t end, const AttentionPart& part) {
  for (int64_t h = 0; h < p.H; ++h) part.largest[h] = -INFINITY, part.sum[h] = 0;
  for (int64_t i = 0; i < p.H * p.P; ++i) part.y[i] = 0;
  for (int i = 0; i < s.n_runs; ++i) {
    const KeyRun& run = s.runs[i];
    const int64_t last = run.end < end ? run.end : end;
    for (int64_t key = run.begin > begin ? run.begin : begin; key < last; key += kStepKeys) {
      const int64_t keys = last - key < kStepKeys ? last - key : kStepKeys;
      with_type(run.bf16, [&]<class T>(T*) { step_tile<T>(p, run, q, key, keys, part); });
    }
  }
}

void join(const AttentionProblem& p, const AttentionSequence& s, const AttentionPart& first,
          int64_t stride, int64_t n) {
  alignas(64) float y[kMaxHead];
  for (int64_t h = 0; h < p.H; ++h) {
    float largest = first.largest[h];
    for (int64_t i = 1; i < n; ++i)
      if (first.largest[i * stride + h] > largest) largest = first.largest[i * stride + h];
    float sum = 0;
    for (int64_t i = 0; i < p.P; ++i) y[i] = 0;
    for (int64_t i = 0; i < n; ++i) {
      const float factor = exp_of(first.largest[i * stride + h] - largest);
      sum += factor * first.sum[i * stride + h];
      store_row(first.y + i * stride + h * p.P, p.P, factor, true, y);
    }
    with_type(p.bf16, [&]<class T>(T*) {
      store_row(y, p.P, 1 / sum, false, static_cast<T*>(s.y) + h * p.P);
    });
    if (s.norm) s.norm[2 * h] = largest, s.norm[2 * h + 1] = 1 / sum;
  }
}

}  // namespace

extern const AttentionKernels attention_kernels = {forward, backward, step, join};

}  // namespace krait::KRAIT_ISA
