#include "krait/train/memory.h"

#include <algorithm>

#include "krait/autograd/plan.h"
#include "krait/ops/adamw/adamw.h"
#include "krait/train/pass.h"

namespace krait {

nn::Purpose purpose_of(const TrainOptions& o) {
  return o.grad_accum == 1 ? nn::Purpose::training_by_batch : nn::Purpose::training;
}

TrainingMemory plan_training(models::Model& model, const TrainOptions& o) {
  check_size_of_step(o);
  require(o.seq_len <= model.longest(),
          "seq-len: this model can be trained on sequences of at most {} tokens, not {}",
          model.longest(), o.seq_len);
  nn::ParamSet& params = model.params();
  if (!params.begin()->m) params.allocate(purpose_of(o), o.dtype, true, o.device);
  params.forget_gradients();
  TrainingMemory m;
  m.parameters = params.allocated_bytes();
  nn::State states[2];
  models::Pass pass;
  pass.recompute = o.recompute;
  pass.dropout = o.dropout;
  pass.drop_path = o.drop_path;
  if (o.carry_state) {
    require(model.endless(),
            "carry-state: this model remembers every token, and would never stop growing, or its "
            "positions run out; train it without, or give its attention a sliding window");
    m.states = 2 * nn::state_bytes(model.state_parts()) * static_cast<size_t>(o.batch_size);
    require_memory(m, o);
    for (nn::State& s : states) s = model.make_state(o.batch_size);
    pass.state_in = &states[0];
    pass.state_out = &states[1];
  }
  const models::Feed feed = model.sketch(o.batch_size, o.seq_len);
  Context like;
  like.device = params.device();
  like.activation = o.dtype;
  like.training = true;
  const Tensor scalars(nullptr, DType::f32, {ops::kStepScalars}, like.device);
  const auto work = [&](Context& c) {
    for (int64_t k = 0; k < std::min<int64_t>(o.grad_accum, 2); ++k) {  // the second one adds
      c.arena->reset();
      c.tape->reset();
      run_pass(c, model, feed, pass, 1.0f);
    }
    clip_gradients(c, params, o.clip, scalars, {});
  };
  m.step = plan(like, true, work).bytes;
  params.forget_gradients();
  if (o.carry_state) {  // the first step starts from nothing, for which an op may have another way
    pass.state_in = nullptr;
    m.step = std::max(m.step, plan(like, true, work).bytes);
    params.forget_gradients();
  }
  return m;
}

void require_memory(const TrainingMemory& m, const TrainOptions& o) {
  const size_t available = free_memory(o.device);
  const auto gb = [](size_t bytes) { return static_cast<double>(bytes) * 1e-9; };
  require(m.total() <= available,
          "a step of {} sequences of {} tokens needs {:.2f} GB of memory ({:.2f} for weights, "
          "gradients and moments, {:.2f} for activations, {:.2f} for states), and {:.2f} GB are "
          "available: lower --batch-size or --seq-len (--grad-accum makes up for it), or use "
          "--recompute layer",
          o.batch_size, o.seq_len, gb(m.total()), gb(m.parameters), gb(m.step), gb(m.states),
          gb(available));
}

}  // namespace krait
