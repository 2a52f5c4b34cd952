// Scratch of one thread, handed out part by part. Only for cpu_simd.cpp files.
#pragma once
#include <cstdint>

namespace krait::KRAIT_ISA {

struct Area {
  float* next;
  float* take(int64_t n) {
    float* p = next;
    next += n;
    return p;
  }
};

}  // namespace krait::KRAIT_ISA
