// Pictures as other programs store them, decoded to pixels: PNG and JPEG, and .npy of uint8 (H, W, 3).
#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace krait {

struct Pixels {
  int64_t H = 0, W = 0;
  std::vector<uint8_t> rgb;  // (H, W, 3), row by row
};

constexpr int64_t kMaxPixels = int64_t{1} << 26;  // of one picture; larger ones are refused unread

// PNG or JPEG, told apart by their first bytes. Grey, palette and CMYK become RGB, transparency is dropped, 16 bits
// become 8; the orientation that a camera noted is not looked at, as in the pipelines that trained published
// weights. `where` starts every message. Error: not such a file, damaged, cut short, or too large.
Pixels parse_picture(std::span<const std::byte> bytes, const std::string& where);

}  // namespace krait
