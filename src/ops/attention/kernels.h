// Private to this room: the hot loops of attention, compiled once per instruction set.
#pragma once
#include <cstdint>

#include "krait/base/isa.h"

namespace krait {

constexpr int64_t kAttentionMaxHead = 256;   // P
constexpr int64_t kAttentionMaxHeads = 512;  // H
constexpr int64_t kAttentionRows = 256;      // tokens times heads of a key head, taken together
constexpr int64_t kAttentionKeys = 64;       // keys of a tile, and rows of a tile of scores

// Keys and values of the positions [begin, end) of a sequence. Pointers are of position `begin`, head 0;
// distances in elements. dk, dv: where their gradients go, or null.
struct KeyRun {
  int64_t begin = 0, end = 0;
  bool bf16 = false;
  const void *k = nullptr, *v = nullptr;
  int64_t k_row = 0, k_head = 0, v_row = 0, v_head = 0;
  void *dk = nullptr, *dv = nullptr;
  bool add_k = false, add_v = false;
};

struct AttentionProblem {
  int64_t H = 0, Hkv = 0, P = 0;
  float scale = 1;
  bool causal = true;
  int64_t window = 0;
  bool bf16 = false;  // q, y and their gradients
  int64_t q_token = 0, q_head = 0;

  int64_t group() const { return H / Hkv; }
  int64_t padded() const { return (P + 15) / 16 * 16; }
};

// One sequence. Pointers are of its first token; y, dy are (tokens, H, P), delta (tokens, H).
struct AttentionSequence {
  int64_t tokens = 0, first = 0;  // first: the position of token 0
  KeyRun runs[3];
  int n_runs = 0;
  const void* q = nullptr;
  void* y = nullptr;
  // (tokens, H, 2): the largest score of a row, and 1 over the sum of exp of distances to it. null: not wanted
  float* norm = nullptr;
  // backward
  const void* dy = nullptr;  // or null: zero
  float* delta = nullptr;    // dy · y
  float* dq_sum = nullptr;   // (tokens, H, padded P)
  void* dq = nullptr;        // strides of q; or null
  bool add_q = false;
  // The gradient of the cache handed out, (C, Hkv·P): what it says of a position that it still holds.
  const float *dk_out = nullptr, *dv_out = nullptr;
  int64_t C_out = 0;
};

// What one piece of a sequence's keys says: for each head the largest score, the sum of exp of the
// distances to it, and the values weighted by these.
struct AttentionPart {
  float *largest = nullptr, *sum = nullptr;  // (H)
  float* y = nullptr;                        // (H, P)
};

struct AttentionKernels {
  // y, and norm where wanted, of tokens [from, to) and the heads of one key head; (to - from) times the group
  // is at most kAttentionRows.
  void (*forward)(const AttentionProblem&, const AttentionSequence&, int64_t key_head, int64_t from,
                  int64_t to);
  // All gradients that belong to one key head of a sequence.
  void (*backward)(const AttentionProblem&, const AttentionSequence&, int64_t key_head);
  // One token, all heads: keys and values at positions [begin, end) into `part`. q (H, P) is float32 and
  // scaled.
  void (*step)(const AttentionProblem&, const AttentionSequence&, const float* q, int64_t begin,
               int64_t end, const AttentionPart& part);
  // y, and norm where wanted, from the parts of the n pieces, `stride` floats apart.
  void (*join)(const AttentionProblem&, const AttentionSequence&, const AttentionPart& first,
               int64_t stride, int64_t n);
};

KRAIT_DECLARE_ISA(AttentionKernels, attention_kernels)

}  // namespace krait
