// Private to this room: rows of logits on the GPU.
#pragma once
#include "krait/ops/cross_entropy/kernels.h"
#include "krait/ops/cross_entropy/loss_scale.h"

namespace krait::cuda {

// For each of `rows` rows of logits (V): what CrossEntropyKernels::row does, nll in float32. Rows of target -1
// give 0 everywhere; those of a target that does not exist give an nll of NaN, which no trainer can miss.
void cross_entropy_rows(float* logits, int64_t rows, int64_t V, const int32_t* targets,
                        ops::LossScale scale, ops::LogitsGrad grad, float* nll, void* stream);

// What smoothing s adds: s (logits[target] - mean of the row) to nll, and the gradient of that to drows (rows, V),
// unless null. Rows of other targets stay.
void cross_entropy_smooth(const float* logits, int64_t rows, int64_t V, const int32_t* targets,
                          ops::LossScale scale, float s, float* drows, float* nll, void* stream);

// loss = scale · Σ nll, summed in float64 in a fixed order.
void cross_entropy_loss(const float* nll, int64_t n, ops::LossScale scale, float* loss,
                        void* stream);

}  // namespace krait::cuda
