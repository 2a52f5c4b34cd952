// The plain definition of long_conv, for tests. Sequences are tokens [begin, end).
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

namespace krait::ops {

// u (tokens, H), K (directions, H, Lk), D (H).
template <class T>
std::vector<T> long_conv_reference(int64_t H, int64_t Lk, int64_t directions,
                                   const std::vector<std::pair<int64_t, int64_t>>& sequences,
                                   const std::vector<T>& u, const std::vector<T>& K,
                                   const std::vector<T>& D) {
  const auto at = [](const std::vector<T>& v, int64_t i) { return v[static_cast<size_t>(i)]; };
  std::vector<T> y(u.size());
  for (const auto& [begin, end] : sequences)
    for (int64_t t = begin; t < end; ++t)
      for (int64_t h = 0; h < H; ++h) {
        T sum = at(D, h) * at(u, t * H + h);
        for (int64_t s = begin; s <= t; ++s)
          if (t - s < Lk) sum += at(K, h * Lk + t - s) * at(u, s * H + h);
        for (int64_t s = t + 1; s < end && directions == 2; ++s)
          if (s - t - 1 < Lk) sum += at(K, (H + h) * Lk + s - t - 1) * at(u, s * H + h);
        y[static_cast<size_t>(t * H + h)] = sum;
      }
  return y;
}

}  // namespace krait::ops
