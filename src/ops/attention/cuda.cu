// attention of any number of tokens a sequence: which kernels a call takes.
#include "krait/ops/attention/cuda_plain.cuh"
#include "krait/ops/attention/cuda_tensor.cuh"
#include "krait/ops/attention/cuda_warpgroup.cuh"

namespace krait::cuda {

int64_t attention_forward_floats(const AttentionCall& c) {
  return attention::may_fit_warpgroups(c) ? 1 : 0;
}

void attention_forward(const AttentionCall& c, float* scratch, void* stream) {
  if (c.tokens == 0 || c.sequences == 0) return;
  if (attention::fits_warpgroups(c) && (!c.from_k || c.cache_bf16)) {
    attention::warpgroup_forward(c, scratch, stream);
  } else {
    attention::fits_tensor_cores(c) ? attention::tensor_forward(c, stream)
                                    : attention::plain_forward(c, stream);
  }
}

int64_t attention_backward_floats(const AttentionCall& c) {
  return attention::may_fit_warpgroups(c) && !c.from_k ? attention::warpgroup_backward_floats(c)
                                                       : c.tokens * c.H;
}

void attention_backward(AttentionBackward b, float* scratch, void* stream) {
  const AttentionCall& c = b.c;
  b.delta = scratch;
  if (b.dy && !c.from_k && c.tokens > 0 && attention::fits_warpgroups(c) &&
      attention::in_chunks(b.dq)) {
    attention::warpgroup_backward(b, scratch, stream);
  } else if (c.sequences > 0 && c.tokens > 0) {
    if (b.dy) attention::add_up_dy_y(b, stream);
    attention::fits_tensor_cores(c) ? attention::tensor_backward(b, stream)
                                    : attention::plain_backward(b, stream);
  }
  if ((b.dk_in || b.dv_in) && c.from_rows > 0) attention::cache_backward(b, stream);
}

}  // namespace krait::cuda
