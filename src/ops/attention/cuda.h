// Private to this room: attention on the GPU. What sequences, lengths and packing hold is read there.
#pragma once
#include <cstdint>

namespace krait::cuda {

// Tokens of (tokens, heads, P), elements between tokens and between heads.
struct HeadRows {
  void* data = nullptr;
  int64_t row = 0, head = 0;
  bool add = false;  // of gradients
};

struct AttentionCall {
  int64_t H = 0, Hkv = 0, P = 0, window = 0;
  float scale = 1;
  bool causal = true, bf16 = false;
  int64_t tokens = 0, L = 0, longest = 0;  // longest: tokens of a sequence
  int64_t sequences = 0;
  const int64_t* begin = nullptr;  // as in a Packing, or null: L tokens each
  const int32_t *row_in = nullptr, *row_out = nullptr;
  HeadRows q, k, v;
  void* y = nullptr;  // (tokens, H, P)
  // (tokens, H, 2): the largest score, or one little below it, and 1 / Σ exp(score - it); or null
  float* norm = nullptr;
  // Caches (rows, C, Hkv·P), lengths (rows); null: none
  bool cache_bf16 = false;  // k and v of both; only where bf16, and not for backward
  const void *from_k = nullptr, *from_v = nullptr;
  const float* from_length = nullptr;
  int64_t from_C = 0, from_rows = 0;
  void *to_k = nullptr, *to_v = nullptr;
  float* to_length = nullptr;
  int64_t to_C = 0;
  bool in_place = false;

  constexpr int64_t group() const { return H / Hkv; }
};

// Any number of tokens a sequence. `scratch` has attention_forward_floats.
int64_t attention_forward_floats(const AttentionCall& c);
void attention_forward(const AttentionCall& c, float* scratch, void* stream);
// After it: keys, values and lengths into the caches handed out.
void attention_append(const AttentionCall& c, void* stream);

// At most one token a sequence, and the cache in place too. `parts` has attention_step_floats.
int64_t attention_step_floats(const AttentionCall& c);
void attention_step(const AttentionCall& c, float* parts, void* stream);

struct AttentionBackward {
  AttentionCall c;
  const void* dy = nullptr;  // or null: zero
  float* delta = nullptr;    // (tokens, H): in the scratch
  HeadRows dq, dk, dv;       // data null: not wanted
  // Gradients of the caches: handed out, or null; handed in, added to, or null.
  const float *dk_out = nullptr, *dv_out = nullptr;
  float *dk_in = nullptr, *dv_in = nullptr;
};
// `scratch` has attention_backward_floats.
int64_t attention_backward_floats(const AttentionCall& c);
void attention_backward(AttentionBackward b, float* scratch, void* stream);

}  // namespace krait::cuda
