// Private to this room: batch_norm on the GPU. Pointers on the device.
#pragma once
#include <cstdint>

namespace krait::cuda {

struct BatchNormCall {
  int64_t rows = 0, D = 0;
  float eps = 0;
  const float *x = nullptr, *w = nullptr, *b = nullptr;
  float *running_mean = nullptr, *running_var = nullptr;
  float *mean = nullptr, *scale = nullptr;  // (D), of the norm: the call's, or from what was seen
  double* sums = nullptr;                   // scratch: batch_norm_sums
};

// A gradient (D), or null.
struct BatchNormSum {
  float* to = nullptr;
  bool add = false;
};

struct BatchNormBackward {
  BatchNormCall c;
  bool training = false;
  const void* dy = nullptr;  // the type of y
  bool bf16 = false;
  float* dx = nullptr;
  bool dx_add = false;
  BatchNormSum dw, db;
};

int64_t batch_norm_sums(int64_t rows, int64_t D);  // doubles
// `training`: mean and scale are made of the rows.
void batch_norm(const BatchNormCall& c, bool training, void* y, bool bf16, void* stream);
void batch_norm_backward(const BatchNormBackward& g, void* stream);

}  // namespace krait::cuda
