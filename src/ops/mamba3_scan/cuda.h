// Private to this room: mamba3_scan on the GPU. Tensors whole; what a packing holds is read there.
#pragma once
#include "krait/ops/mamba3_scan/kernels.h"

namespace krait::ops::mamba3 {

struct CudaCall {
  Sizes size;
  int64_t H = 0, G = 0, tokens = 0, L = 0, longest = 0;
  int64_t sequences = 0;
  const int64_t* begin = nullptr;  // as in a Packing, or null: L tokens each
  const int32_t *row_in = nullptr, *row_out = nullptr;
  bool halves = false, shared_angle = true;
  Rows x, z, B, C, dt, adt, trap, angle;
  const float *B_bias = nullptr, *C_bias = nullptr, *D = nullptr, *norm = nullptr;
  const float *mimo_x = nullptr, *mimo_z = nullptr, *mimo_o = nullptr;
  float norm_eps = 0;
  StateOf<float> from, to;   // row 0, head 0; null: none
  float* saved = nullptr;    // (tokens / kChunk, H, saved_size), or null
  float* scratch = nullptr;  // cuda_forward_scratch or cuda_backward_scratch floats
};

int64_t cuda_forward_scratch(const CudaCall& c);
void cuda_forward(const CudaCall& c, const GradRows& y, void* stream);

// Gradients: null where not wanted. `rows` of head 0; where heads share angles dangle goes through parts.
struct CudaBackward {
  CudaCall c;
  Rows dy;  // data null: zero
  StateOf<float> dto;
  GradRows dx, dz, ddt, dadt, dtrap, dangle;
  GradRows dB, dC;
  struct Sum {
    float* to = nullptr;
    bool add = false;
  };
  Sum dB_bias, dC_bias, dD, dnorm, dmimo_x, dmimo_z, dmimo_o;
  Sum dfrom_angle, dfrom_ssm, dfrom_k, dfrom_v;
  int64_t from_rows = 0;

  bool any_from() const { return dfrom_angle.to || dfrom_ssm.to || dfrom_k.to || dfrom_v.to; }
};

int64_t cuda_backward_scratch(const CudaBackward& b);
void cuda_backward(const CudaBackward& b, void* stream);

}  // namespace krait::ops::mamba3
