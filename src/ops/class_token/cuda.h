// Private to this room: class_token on the GPU. All tensors contiguous float32.
#pragma once
#include <cstdint>

namespace krait::cuda {

struct ClassToken {
  int64_t B, M, D, at;
};

struct ClassTokenGradient {
  float* to;  // null: not wanted
  bool add;
};

void class_token_forward(const ClassToken& s, const float* x, const float* cls,
                         const float* positions, float* y, void* stream);
void class_token_backward(const ClassToken& s, const float* dy, ClassTokenGradient dx,
                          ClassTokenGradient dcls, ClassTokenGradient dpositions, void* stream);

}  // namespace krait::cuda
