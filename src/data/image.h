// From pixels to what a model of images reads: resized, cut out of the middle, normalised.
#pragma once
#include <vector>

#include "krait/io/image_file.h"

namespace krait {

// The window [top, top+h) x [left, left+w) of the picture resized to (H, W): bicubic (Keys 1981, a = -1/2),
// widened where it makes smaller so that nothing aliases, first along rows, then along columns, each rounded to
// 8 bits: the filter of the Pillow library, with which published weights were trained and evaluated.
struct Window {
  int64_t top = 0, left = 0, h = 0, w = 0;
};
Pixels resize(const Pixels& from, int64_t H, int64_t W, const Window& window);

// As the paper evaluates (Zhu et al. 2024, after DeiT): the shorter side to 256/224 of `size`, the middle
// `size` x `size` of that; (x / 255 - mean) / deviation with ImageNet's numbers. (3, size, size).
std::vector<float> evaluation_image(const Pixels& picture, int64_t size);

}  // namespace krait
