// The sequences of one call of an op over time: the rows of a batch, or those of a Packing.
#pragma once
#include "krait/ops/packing.h"
#include "krait/tensor/context.h"

namespace krait::ops {

struct Sequence {
  int64_t begin = 0, tokens = 0;
  int64_t in = -1, out = -1;  // rows of the states, -1: none
};

class Sequences {
 public:
  Sequences() = default;  // none
  // Of the tokens of (B, L) rows. The states have the sequence as their first axis; either may be absent.
  // Throws Error, in the name of `op`, where the packing or the states' rows do not fit.
  Sequences(const Context& c, const char* op, int64_t B, int64_t L, const Packing* packing,
            const Tensor& state_in, const Tensor& state_out);

  int64_t size() const { return packed_ ? packing_.n : B_; }
  // Asked for each piece of work of a decoded token: inline.
  Sequence operator[](int64_t s) const {
    if (!packed_) return {s * L_, L_, has_in_ ? s : -1, has_out_ ? s : -1};
    const auto* begin = static_cast<const int64_t*>(packing_.begin.data);
    const auto row = [s](const Tensor& t) {
      return int64_t{static_cast<const int32_t*>(t.data)[s]};
    };
    return {begin[s], begin[s + 1] - begin[s], has_in_ ? row(packing_.state_in) : -1,
            has_out_ ? row(packing_.state_out) : -1};
  }

 private:
  void check_packing(const Context& c, const char* op, int64_t rows_in, int64_t rows_out) const;

  int64_t B_ = 0, L_ = 0;
  bool packed_ = false, has_in_ = false, has_out_ = false;
  Packing packing_;
};

}  // namespace krait::ops
