// From pixels to what a model of images reads: cut out, resized, normalised.
#pragma once
#include <vector>

#include "krait/base/rng.h"
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

// What training changes at random.
struct Augmentation {
  // least share of the area of a random crop; 1: no crops, the middle as in evaluation
  double crop_scale = 1;
  double hflip = 0;  // how often left and right change places
};

// A window for a random crop of a picture of H x W (Szegedy et al. 2015, section 6): a share of the area that is
// uniform from `least` to 1, width to height uniform in its logarithm from 3/4 to 4/3, at any place. Where ten such do
// not fit: the largest in the middle whose sides are no further apart.
Window random_window(int64_t H, int64_t W, double least, const Philox& random);

// Such a crop, resized to `size` x `size`, and flipped; then as evaluation_image.
std::vector<float> training_image(const Pixels& picture, int64_t size, const Augmentation& how,
                                  const Philox& random);

// Whether this draw flips.
bool flips(const Augmentation& how, const Philox& random);
// Left and right of (C, size, size) change places.
void flip(std::vector<float>& values, int64_t size);

}  // namespace krait
