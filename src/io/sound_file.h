// Sounds out of files, by libsndfile: WAVE, FLAC, Ogg.
#pragma once
#include <cstdint>
#include <filesystem>
#include <vector>

namespace krait {

struct Sound {
  int64_t channels = 1, rate = 0;  // samples a second, of each channel
  std::vector<float> samples;      // (L, channels), whole numbers scaled to [-1, 1)
};

bool is_sound(const std::filesystem::path& file);  // by its extension

// Error: no such file, not a sound, or damaged.
Sound read_sound(const std::filesystem::path& file);

}  // namespace krait
