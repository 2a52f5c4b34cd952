// Private to ssd: the checked inputs of one call.
#pragma once
#include <algorithm>

#include "krait/autograd/tape.h"
#include "krait/ops/sequences.h"
#include "krait/ops/ssd/kernels.h"
#include "krait/ops/ssd/ssd.h"

namespace krait::ops::ssd_call {

using ssd_cpu::kHeadSet;
using ssd_cpu::padded;

// Some neighbouring heads of one group; sets of a group are of about one size.
struct HeadSet {
  int64_t group, first, heads;
};

// The checked inputs of one call.
struct Problem {
  SsdInputs in;
  Tensor state_in, state_out;
  bool packed;
  Packing packing;
  int64_t H, P, N, G, tokens;
  Sequences sequences;

  Problem(const Context& c, const SsdInputs& inputs, const Packing* packing, const Tensor& from,
          const Tensor& to, bool record);  // throws Error where something does not fit

  int64_t sets_of_group() const { return (H / G + kHeadSet - 1) / kHeadSet; }
  int64_t sets() const { return G * sets_of_group(); }
  HeadSet set(int64_t i) const {
    const int64_t n = sets_of_group(), k = i % n, group = i / n;
    const int64_t begin = k * (H / G) / n, end = (k + 1) * (H / G) / n;
    return {group, group * (H / G) + begin, end - begin};
  }
  int64_t state_size() const { return P * N; }
  int64_t saved_size() const { return N * padded(P); }  // of a head's state as it is kept
};

// What the gradients of a call's inputs go to.
struct Gradients {
  GradTarget x, dt, A, B, C, D, dt_bias, state_in;
};

// Null where the tensor is absent.
inline float* floats_at(const Tensor& t, int64_t i) {
  return t ? static_cast<float*>(t.data) + i : nullptr;
}

}  // namespace krait::ops::ssd_call
