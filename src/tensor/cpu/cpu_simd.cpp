#include "krait/tensor/cpu/kernels.h"

#include <string.h>

namespace krait::KRAIT_ISA {

namespace {

// Plain loops: the compiler turns them into vectors of this file's instruction set.
inline float widen(uint16_t b) {
  const uint32_t u = static_cast<uint32_t>(b) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}

inline uint16_t narrow(float f) {  // to nearest even; NaN stays NaN
  uint32_t u;
  memcpy(&u, &f, 4);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const uint32_t nan = (u >> 16) | 0x40u;
  return static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

void f32_to_bf16(const float* __restrict from, uint16_t* __restrict to, int64_t n, bool add) {
  if (add) {
    for (int64_t i = 0; i < n; ++i) to[i] = narrow(widen(to[i]) + from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = narrow(from[i]);
  }
}

void bf16_to_f32(const uint16_t* __restrict from, float* __restrict to, int64_t n, bool add) {
  if (add) {
    for (int64_t i = 0; i < n; ++i) to[i] += widen(from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = widen(from[i]);
  }
}

}  // namespace

extern const cpu::ConvertKernels convert_kernels = {f32_to_bf16, bf16_to_f32};

}  // namespace krait::KRAIT_ISA
