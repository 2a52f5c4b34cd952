// Sequences of different lengths side by side in one tensor, without padding.
//
// The B*L tokens of a (B, L, ...) tensor, in memory order, are cut into `n` sequences: sequence s is the
// tokens [begin[s], begin[s+1]). Each starts from row state_in[s] of the state tensor handed in (-1: from
// zero) and leaves its last state in row state_out[s] of the one handed out (-1: dropped). No state and
// no convolution window crosses a border. Without a Packing each of the B rows is a sequence, with
// states in and out in row b.
#pragma once
#include "krait/tensor/staging.h"

namespace krait::ops {

struct Packing {
  int64_t n = 0;
  int64_t longest = 0;  // tokens of the longest sequence
  Tensor begin;  // (n + 1) int64, ascending; begin[0] = 0, begin[n] = B*L. Empty sequences allowed.
  Tensor state_in;   // (n) int32
  Tensor state_out;  // (n) int32, no row twice
};

// The packing with its arrays, now in the host's memory, where ops on the context's device can read them.
inline Packing put(Context& c, Staging& staging, size_t first_place, const Packing& host) {
  Packing p = host;
  p.begin = staging.put(c, first_place, host.begin);
  p.state_in = staging.put(c, first_place + 1, host.state_in);
  p.state_out = staging.put(c, first_place + 2, host.state_out);
  return p;
}

}  // namespace krait::ops
