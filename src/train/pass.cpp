#include "krait/train/pass.h"

#include "krait/autograd/tape.h"
#include "krait/ops/adamw/adamw.h"
#include "krait/tensor/memory.h"

namespace krait {

ops::CrossEntropyResult run_pass(Context& c, const models::Model& model, const models::Feed& feed,
                                 const models::Pass& pass, ops::LossScale scale) {
  if (c.tape)
    for (const nn::Param& p : model.params())
      if (Var* const v = p.value.var; v && !v->grad) c.tape->keep_in_arena(*v);
  // Backward gives the memory of what comes after a layer back, the loss's too: it is kept in front of all.
  const Tensor kept = c.tape ? c.alloc({1}, DType::f32) : Tensor();
  ops::CrossEntropyResult result = model.objective(c, feed, pass, scale);
  if (c.tape) {
    copy(c, result.loss.detach().reshape({1}), kept);
    result.loss = kept;
    c.tape->backward(c);
    if (pass.state_out)  // the tape's variables end here
      for (size_t i = 0; i < pass.state_out->parts().size(); ++i)
        pass.state_out->tensor(i).var = nullptr;
  }
  return result;
}

void clip_gradients(Context& c, const nn::ParamSet& params, float limit, const Tensor& scalars,
                    const Tensor& losses) {
  c.arena->set_low(0);  // not the high end, where gradients may be
  std::vector<Tensor> grads;
  for (const nn::Param& p : params) {
    if (!p.trained) continue;
    require(p.var.written, "{} has no gradient", p.name);
    grads.push_back(p.var.grad);
  }
  ops::clip_grad_norm(c, grads, limit, scalars, losses);
}

PlacedBatch place(Context& c, Staging& staging, size_t first_place, const Batch& batch) {
  return {.feed = put(c, staging, batch, first_place),
          .packing = put_packing(c, staging, batch, first_place),
          .packed = batch.packed(),
          .carried = batch.carried};
}

ops::CrossEntropyResult run_pass(Context& c, const models::Model& model, const PlacedBatch& batch,
                                 models::Pass pass, ops::LossScale scale) {
  if (batch.packed) pass.packing = &batch.packing;
  if (!batch.carried) pass.state_in = nullptr;
  return run_pass(c, model, batch.feed, pass, scale);
}

}  // namespace krait
