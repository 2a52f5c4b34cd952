// rotary as its formula reads, one head of one token. For tests only.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

#include "krait/ops/rotary/rotary.h"

namespace krait::ops {

template <class T>
std::vector<T> rotary_reference(std::vector<T> x, const Rotation& r, int64_t position) {
  for (int64_t i = 0; i < r.R / 2; ++i) {
    const auto a = static_cast<size_t>(r.interleaved ? 2 * i : i),
               b = static_cast<size_t>(r.interleaved ? 2 * i + 1 : i + r.R / 2);
    // In the words of Llama's code: by wavelengths, in tokens.
    double slope = std::pow(r.base, -2.0 * static_cast<double>(i) / static_cast<double>(r.R));
    const RotaryScaling& s = r.scaling;
    const double wave = 6.283185307179586476925 / slope;
    if (s.high == 0 || wave > s.original / s.low) {
      slope /= s.factor;
    } else if (wave >= s.original / s.high) {
      const double smooth = (s.original / wave - s.low) / (s.high - s.low);
      slope = (1 - smooth) * slope / s.factor + smooth * slope;
    }
    const double angle = static_cast<double>(position) * slope;
    const T cosine(std::cos(angle)), sine(std::sin(angle)), x_a = x[a], x_b = x[b];
    x[a] = x_a * cosine - x_b * sine;
    x[b] = x_a * sine + x_b * cosine;
  }
  return x;
}

}  // namespace krait::ops
