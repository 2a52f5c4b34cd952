// Sound as WAVE files hold it.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace krait {

struct Sound {
  int64_t channels = 1, rate = 0;  // samples a second, of each channel
  std::vector<float> samples;      // (L, channels), from -1 to 1
};

// Whole numbers of 8, 16, 24 or 32 bits, or float32. `where` starts every message. Error: not such a file, damaged, cut
// short, or of a compressed kind.
Sound parse_wav(std::span<const std::byte> bytes, const std::string& where);

}  // namespace krait
