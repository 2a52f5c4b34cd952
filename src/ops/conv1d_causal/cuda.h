// Private to this room: conv1d_causal on the GPU.
#pragma once
#include "krait/ops/conv1d_causal/kernels.h"

namespace krait::cuda {

// How the tokens are cut into sequences; pointers on the device. `begin` null: n sequences of `length` tokens.
struct ConvSequences {
  int64_t n = 0, tokens = 0, length = 0;
  const int64_t* begin = nullptr;
  const int32_t *in = nullptr, *out = nullptr;  // rows of the states
  bool reverse = false;  // step t of a sequence stands at row begin + end - 1 - t
};

// y, then state_out (or null), which may be state_in's memory.
void conv_forward(const ConvProblem& p, const ConvSequences& c, const void* state_in,
                  void* state_out, void* stream);

// Tokens of a block of backward, which makes one partial sum of dk and dbias of 128 channels. Of many tokens two blocks
// for each multiprocessor of an H200, or twice as many, and so on, of at most so many tokens.
constexpr int64_t conv_backward_tokens(int64_t tokens, int64_t E) {
  if (tokens < 8192) return 128;
  int64_t each = 0;
  for (int64_t blocks = 264; each == 0 || each > 1152; blocks *= 2) {
    const int64_t of_channels = (E + 127) / 128;
    const int64_t pieces = blocks < of_channels ? 1 : blocks / of_channels;
    each = (tokens + 16 * pieces - 1) / (16 * pieces) * 16;
  }
  return each;
}

// What may be null is not given or not wanted.
struct ConvBackward {
  const float* state_in;
  const float* dstate_out;
  float* dhistory;   // (n, W-1, E) scratch, with dstate_in
  float* dstate_in;  // added to
  float* sums;       // (tokens / conv_backward_tokens rounded up, W+1, E) scratch, with dk or dbias
  float* dk;         // (E, W)
  bool dk_add;
  float* dbias;  // (E)
  bool dbias_add;
};

void conv_backward(const ConvProblem& p, const ConvSequences& c, const ConvBackward& b,
                   int64_t state_rows, void* stream);

}  // namespace krait::cuda
