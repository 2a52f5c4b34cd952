// patches: the squares of an image as rows, for a linear layer to embed: with weights (D, channels, size,
// size) taken as (D, channels·size·size) that is a convolution of this size and stride without padding.
//
//   images (B, channels, H, W)                    float32, contiguous; not differentiated
//   y (B, rows · columns, channels·size·size)     float32; rows = (H - size)/stride + 1, likewise columns;
//                                                 patches row by row, within one as the weights are
#pragma once
#include "krait/tensor/context.h"

namespace krait::ops {

Tensor patches(Context& c, const Tensor& images, int64_t size, int64_t stride);

}  // namespace krait::ops
