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
  // Of the tokens of (B, L) rows. The states have the sequence as their first axis; either may be absent.
  // Throws Error, in the name of `op`, where the packing or the states' rows do not fit.
  Sequences(const Context& c, const char* op, int64_t B, int64_t L, const Packing* packing,
            const Tensor& state_in, const Tensor& state_out);

  int64_t size() const { return packed_ ? packing_.n : B_; }
  Sequence operator[](int64_t s) const;

 private:
  void check_packing(const Context& c, const char* op, int64_t rows_in, int64_t rows_out) const;

  int64_t B_, L_;
  bool packed_, has_in_, has_out_;
  Packing packing_;
};

}  // namespace krait::ops
