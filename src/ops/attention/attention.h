// attention: softmax attention over the keys of each sequence, those of a cache in front of its own.
//
//   y[t,h] = Σ_s p[t,h,s] v[s,g]      p[t,h,·] = softmax_s( scale · q[t,h] · k[s,g] )      g = h / (H/Hkv)
//
// Token t stands at position length + t of its sequence and sees the positions s <= t (causal) or all of
// them; with a window only the last `window` of those: t itself and the window-1 before it.
// Vaswani et al. 2017; shared key heads as in Ainslie et al. 2023 (GQA); softmax as a running maximum and sum
// over blocks of keys, and backward from the two, as in Dao et al. 2022 (FlashAttention): nothing of size L·L
// is ever held.
//
//   q (B, L, H, P)         float32 or bfloat16, tokens at one distance, heads at one distance; P to 256
//   k, v (B, L, Hkv, P)    dtype of q; H a multiple of Hkv; not rotated here (see krait/ops/rotary)
//   y (B, L, H, P)         dtype of q; everything in float32 inside, rounded once
//
// A cache is what a sequence has read, as a state:
//
//   k, v (S, C, Hkv·P)     float32 or, where nothing is recorded, the dtype of q; position p in row p mod C
//   length (S, 1)          float32: the number of tokens read, at most kMostCounted
//
// C bounds the tokens of a sequence. With a window C >= window is enough for any length: the oldest rows are
// overwritten.
// Rows that hold no token may hold anything. Only causal attention takes a cache.
//
// `to` may be the same memory as `from` when not recorded: the new rows are appended in place. Otherwise the
// rows in use are copied. As with any state, a row of `from` may start several sequences, whose gradients add
// up; in place a sequence starts from zero or from the row it writes.
//
// Gradients for q, k, v and the k, v of the cache, from y and the cache handed out; none for length. Saved
// for backward: q, k, v, y, the cache and two floats a token and head. With bfloat16 gradients of scores are
// as exact as dy · y, y rounded. Sums run in an order that follows from shapes and lengths: the same bits for
// any number of threads.
//
// A call with one token a sequence reads every key and value once, in order, cut into pieces of 512
// positions.
//
// On a GPU the host does not know what a packing and a length hold, so that only the CPU checks them: there a
// sequence that outgrows its cache would overwrite its oldest rows. bfloat16 calls with P a multiple of 8, at
// most 128, run on tensor cores: weights and cached keys and values are rounded to bfloat16 as factors. On
// sm_90a backward (unless a cache comes in) adds up dq in float32 in scratch, tokens · H · P with P rounded up
// to 64 or 128: block by block in an order that follows from shapes, the same bits each time.
#pragma once
#include "krait/ops/packing.h"
#include "krait/tensor/context.h"

namespace krait::ops {

struct AttentionInputs {
  Tensor q, k, v;
  float scale = 1;
  bool causal = true;
  int64_t window = 0;  // 0: none
};

// What a float32 counts one by one.
constexpr int64_t kMostCounted = int64_t{1} << 24;

struct KeyCache {
  Tensor k, v, length;
  explicit operator bool() const { return static_cast<bool>(k); }
};

struct AttentionResult {
  Tensor y;
  KeyCache cache;  // `to`, as variables where recorded
};

AttentionResult attention(Context& c, const AttentionInputs& in, const Packing* packing = nullptr,
                          const KeyCache& from = {}, const KeyCache& to = {});

}  // namespace krait::ops
