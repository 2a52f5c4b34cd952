// Private to this room: rotary on the GPU. Where sequences begin and start is read there.
#pragma once
#include <cstdint>

namespace krait::cuda {

constexpr int64_t kRotaryMaxPairs = 128;

struct RotaryCall {
  bool bf16 = false, interleaved = false, add = false;
  int64_t tokens = 0, L = 0, H = 0, P = 0, R = 0;
  int64_t sequences = 0;
  const int64_t* begin = nullptr;  // as in a Packing, or null: L tokens each
  const int32_t* row_in = nullptr;
  const float* start = nullptr;  // or null
  const void* from = nullptr;
  void* to = nullptr;
  int64_t from_row = 0, from_head = 0, to_row = 0,
          to_head = 0;                 // elements between tokens and heads
  double sign = 1;                     // -1 turns back
  double angle[kRotaryMaxPairs] = {};  // of each pair, from one position to the next
};

void rotary(const RotaryCall& c, void* stream);

}  // namespace krait::cuda
