// Private to this room: which sequences a call has, and where the keys of each lie in its cache.
#pragma once
#include "krait/ops/attention/attention.h"
#include "krait/ops/attention/kernels.h"

namespace krait::ops {

// The distance between tokens, where all B·L of them stand at one; -1 where they do not.
inline int64_t token_distance(const Tensor& t) {
  const bool even = t.size(0) <= 1 || t.stride[0] == t.size(1) * t.stride[1];
  return even ? t.stride[1] : -1;
}

struct CachedSequence {
  int64_t begin = 0, end = 0;  // its tokens
  int64_t in = -1, out = -1;   // rows of the caches, -1: none
  int64_t length = 0;          // tokens that the cache holds for it
  int64_t tokens() const { return end - begin; }
};

class CacheCall {
 public:
  CacheCall() = default;
  // Checks shapes.
  CacheCall(int64_t B, int64_t L, int64_t Hkv, int64_t P, DType dtype, int64_t window,
            const Packing* packing, const KeyCache& from, const KeyCache& to);
  // What the packing and the lengths hold, on the CPU. Error where a sequence would outgrow its cache.
  void check_values() const;

  int64_t tokens() const { return B_ * L_; }
  int64_t sequences() const { return packed_ ? packing_.n : B_; }
  int64_t longest() const { return packed_ ? packing_.longest : L_; }
  // The most positions that a token can see, by the shapes.
  int64_t most_positions() const;
  CachedSequence operator[](int64_t s) const;
  const KeyCache& from() const { return from_; }
  const KeyCache& to() const { return to_; }
  bool in_place() const { return from_ && to_ && from_.k.data == to_.k.data; }
  const Packing* packing() const { return packed_ ? &packing_ : nullptr; }

  // The cached positions of a sequence in order: 0, 1 or, where the ring wraps, 2 runs.
  int runs(const CachedSequence& s, KeyRun* to) const;
  // Keys, values and length of every sequence into the cache handed out.
  void append(const Tensor& k, const Tensor& v) const;

  // For backward: where the gradients of a run of the cache belong, and those of the cache handed out.
  void add_gradients(const CachedSequence& s, const Tensor& dk, const Tensor& dv,
                     KeyRun& run) const;
  void gradients_out(const CachedSequence& s, const Tensor& dk, const Tensor& dv,
                     AttentionSequence& to) const;

 private:
  void check(const char* name, const KeyCache& cache, DType dtype) const;
  void append(const CachedSequence& s, const Tensor& from, const Tensor& cache_in,
              const Tensor& cache_out) const;
  int64_t rows(const KeyCache& cache) const { return cache.k.size(1); }

  int64_t B_ = 0, L_ = 0, P_ = 0, width_ = 0, window_ = 0;  // width: Hkv·P
  bool packed_ = false;
  Packing packing_;
  KeyCache from_, to_;
};

}  // namespace krait::ops
