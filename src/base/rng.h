// Random numbers by counter (Philox 4x32, 10 rounds; Salmon et al., SC 2011): a value depends on
// (seed, stream, counter) alone, so any element can be drawn anywhere, in any order, on any device.
#pragma once
#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>

namespace krait {

struct Philox {
  uint64_t seed = 0;
  uint64_t stream = 0;

  // Four independent 32-bit words for this counter.
  std::array<uint32_t, 4> words(uint64_t counter) const {
    std::array<uint32_t, 4> c = {
        static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
        static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)};
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = 0xD2511F53ull * c[0], p1 = 0xCD9E8D57ull * c[2];
      c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
           static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    return c;
  }

  // Uniform in [0, 1), 24 bits.
  float uniform(uint64_t i) const {
    return static_cast<float>(words(i >> 2)[i & 3] >> 8) * 0x1p-24f;
  }

  // Uniform in [0, 1), 53 bits.
  double uniform_double(uint64_t i) const {
    const auto w = words(i);
    return static_cast<double>(((static_cast<uint64_t>(w[0]) << 32) | w[1]) >> 11) * 0x1p-53;
  }

  // Standard normal (Box-Muller).
  double normal(uint64_t i) const {
    const auto w = words(i);
    const double u = (static_cast<double>(w[0]) + 1.0) * 0x1p-32;  // (0, 1]
    const double v = static_cast<double>(w[1]) * 0x1p-32;
    return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
  }
};

}  // namespace krait
