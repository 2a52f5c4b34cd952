// adamw: one step of AdamW for one tensor, and what belongs to it: the global gradient norm and the clip
// factor. Loshchilov and Hutter 2019, decoupled decay.
//
//   g = clip · grad;  m = β1 m + (1-β1) g;  v = β2 v + (1-β2) g²
//   p = p - lr · decay · p - lr · (m / (1-β1^k)) / (sqrt(v / (1-β2^k)) + eps)
//
// Nothing here is a host value that changes from step to step: lr, the step's bias corrections and the
// clip factor are read from `scalars`, which lives on the device. Where the clip factor is 0 nothing is changed.
//
// A p that a model reads in bfloat16 is kept in two halves, to the bit: `value` is p rounded to nearest even,
// `low` the lower 16 bits of p. As integers p = 2^16 value + low, with low as a signed number: where p was
// rounded up, low is negative. At a tie, low = 0x8000, that does not tell up from down. There the sign of v,
// which is never negative otherwise, is set where p was rounded down, and p is 2^16 more.
#pragma once
#include <vector>

#include "krait/ops/adamw/scalars.h"
#include "krait/tensor/context.h"

namespace krait::ops {

struct AdamwTensors {
  Tensor value;  // float32, or bfloat16 with `low`
  Tensor low;    // 16 bits an element, in a tensor of bfloat16; or empty
  Tensor grad, m, v;
  float decay = 0;
  float rate = 1;  // its learning rate is this many times that of the step
};

struct AdamwOptions {
  float beta1 = 0.9f, beta2 = 0.95f, eps = 1e-8f;
};

void adamw(Context& c, const std::vector<AdamwTensors>& tensors, const AdamwOptions& o,
           const Tensor& scalars);

// value, low and the signs of v from p (float32); on the context's device.
void split(Context& c, const Tensor& p, const Tensor& value, const Tensor& low, const Tensor& v);
// The reverse, into p; all in the host's memory.
void join(const Tensor& value, const Tensor& low, const Tensor& v, const Tensor& p);

// scalars[kGradNorm] = global L2 norm of the gradients (summed in float64 over fixed pieces), and
// scalars[kClip] = limit / (norm + 1e-6) where the norm is above the limit, else 1 (limit <= 0: never); 0 where
// the norm or one of `losses` (float32, optional) is not finite: such a step must not be taken.
void clip_grad_norm(Context& c, const std::vector<Tensor>& grads, float limit,
                    const Tensor& scalars, const Tensor& losses = {});

}  // namespace krait::ops
