#include "krait/train/pass.h"

#include "krait/autograd/tape.h"
#include "krait/tensor/memory.h"

namespace krait {

ops::CrossEntropyResult run_pass(Context& c, const models::LanguageModel& model,
                                 const Tensor& tokens, const Tensor& targets,
                                 const models::Pass& pass, float scale) {
  // Backward gives the memory of what comes after a layer back, the loss's too: it is kept in front of all.
  const Tensor kept = c.tape ? c.alloc({1}, DType::f32) : Tensor();
  const Tensor hidden = model.hidden(c, tokens, pass);
  ops::CrossEntropyResult result = model.loss(c, hidden, targets, scale);
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

ops::CrossEntropyResult run_pass(Context& c, const models::LanguageModel& model, const Batch& batch,
                                 Staging& staging, models::Pass pass, float scale) {
  const Tensor tokens = staging.put(c, 0, batch.tokens_view()),
               targets = staging.put(c, 1, batch.targets_view());
  const ops::Packing packing = ops::put(c, staging, 2, batch.packing());
  if (batch.packed()) pass.packing = &packing;
  if (!batch.carried) pass.state_in = nullptr;
  return run_pass(c, model, tokens, targets, pass, scale);
}

}  // namespace krait
