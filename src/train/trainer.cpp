#include "krait/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "krait/autograd/plan.h"
#include "krait/train/finite.h"
#include "krait/train/pass.h"

namespace krait {

// Random streams of dropout, 2^20 for a micro-batch: away from those of initial values and the shuffle.
constexpr uint64_t kDropoutStream = uint64_t{1} << 61;
constexpr int kDropoutStreamsLog2 = 20;

constexpr int64_t kValidationChunk = 4096;  // tokens of a pass

Trainer::Trainer(models::LanguageModel& model, const TokenStream& data, const TrainOptions& o)
    : Trainer(model,
              std::make_unique<Batcher>(
                  data, BatcherOptions{o.batch_size, o.seq_len, o.order, o.carry_state, o.seed}),
              o) {}

Trainer::Trainer(models::Model& model, std::unique_ptr<Batches> batches,
                 const TrainOptions& options)
    : model_(model),
      options_(options),
      batches_(std::move(batches)),
      stream_(model.params().device()),
      scalars_memory_(ops::kStepScalars * sizeof(float), model.params().device()),
      scalars_(scalars_memory_.take_low(ops::kStepScalars * sizeof(float)), DType::f32,
               {ops::kStepScalars}, model.params().device()) {
  if (model.routes()) {
    const Shape shape{model.n_layer(), 2};
    router_memory_ = DeviceMemory(device(), static_cast<size_t>(shape.numel()) * sizeof(float));
    router_ = Tensor(router_memory_.data(), DType::f32, shape, device());
    zero_bytes(router_);
  }
  arena_ = Arena(plan_training(model, options).step, device());
  if (options.carry_state)
    for (nn::State& s : states_) s = model.make_state(options.batch_size);
}

Context Trainer::context(bool training) {
  arena_.reset();
  tape_.reset();
  Context c;
  c.device = device();
  c.stream = stream_;
  c.arena = &arena_;
  c.tape = training ? &tape_ : nullptr;
  c.activation = options_.dtype;
  c.training = training;
  return c;
}

models::Pass Trainer::training_pass(int64_t micro_batch) {
  models::Pass pass;
  pass.recompute = options_.recompute;
  pass.dropout = options_.dropout;
  pass.router = router_;
  pass.drop_path = options_.drop_path;
  pass.label_smoothing = options_.label_smoothing;
  pass.balance_gradient = 1.0f / static_cast<float>(options_.grad_accum);
  if (options_.carry_state) {
    pass.state_in = &states_[micro_batch % 2];
    pass.state_out = &states_[(micro_batch + 1) % 2];
  }
  return pass;
}

// The arena is made for batches without document borders; others may need more.
void Trainer::reserve(const Batch& batch, const models::Pass& pass, bool training) {
  const Context like = context(training);
  const size_t bytes = plan(like, training, [&](Context& c) {
                         run_pass(c, model_, batch, staging_, pass, 1.0f);
                       }).bytes;
  if (bytes <= arena_.capacity()) return;
  arena_ = Arena(0);
  arena_ = Arena(bytes, device());
}

StepResult Trainer::step() {
  const int64_t step = steps_done_ + 1, K = options_.grad_accum;
  const int64_t first = steps_done_ * K;  // micro-batches before this step
  std::vector<Batch> batches;
  int64_t targets = 0;
  for (int64_t k = 0; k < K; ++k) {
    batches.push_back(batches_->at(first + k));
    targets += batches.back().n_targets;
    if (batches.back().packed()) reserve(batches.back(), training_pass(first + k), true);
  }
  const float scale = targets > 0 ? static_cast<float>(1.0 / static_cast<double>(targets)) : 0.0f;

  model_.params().forget_gradients();
  double loss = 0, dropped = 0;
  for (int64_t k = 0; k < K; ++k) {
    Context c = context(true);
    c.rng.seed = options_.seed;
    c.rng.stream = kDropoutStream + (static_cast<uint64_t>(first + k) << kDropoutStreamsLog2);
    const Batch& batch = batches[static_cast<size_t>(k)];
    loss += number(run_pass(c, model_, batch, staging_, training_pass(first + k), scale).loss);
    std::vector<std::byte> buffer;
    const Tensor routed = on_host(router_, buffer);
    for (int64_t i = 0; routed && i < routed.size(0); ++i) {
      loss += get(routed, 2 * i) / static_cast<double>(K);
      dropped += get(routed, 2 * i + 1);
    }
  }
  StepResult r;
  r.lr = learning_rate(options_, step);
  set_scalars(step, r.lr);
  r.grad_norm = clip();
  if (!std::isfinite(loss) || !std::isfinite(r.grad_norm))
    fail_not_finite(model_.params(), step, loss, r.grad_norm);
  update();
  steps_done_ = step;
  r.loss = targets > 0 ? loss : std::numeric_limits<double>::quiet_NaN();
  r.dropped = static_cast<int64_t>(dropped);
  r.tokens = K * batches_->inputs();
  return r;
}

void Trainer::set_scalars(int64_t step, double lr) {
  const auto bias = [&](float beta) {
    return static_cast<float>(-std::expm1(static_cast<double>(step) * std::log(double{beta})));
  };
  float values[ops::kStepScalars] = {};
  values[ops::kLearningRate] = static_cast<float>(lr);
  values[ops::kBias1] = bias(options_.beta1);
  values[ops::kBias2] = bias(options_.beta2);
  upload(values, scalars_, stream_);
}

// Waits for it.
float Trainer::number(const Tensor& t) const {
  float x = 0;
  download(t, &x, stream_);
  return x;
}

double Trainer::clip() {
  std::vector<Tensor> grads;
  for (const nn::Param& p : model_.params()) {
    require(p.var.written, "{} has no gradient", p.name);
    grads.push_back(p.var.grad);
  }
  Context c = context(false);
  ops::clip_grad_norm(c, grads, options_.clip, scalars_);
  return number(scalars_.slice(0, ops::kGradNorm, ops::kGradNorm + 1));
}

void Trainer::update() {
  const TrainOptions& o = options_;
  // Those with a learning rate of their own follow the schedule in proportion.
  const auto rate = [&](const nn::Param& p) {
    return p.lr > 0 && o.lr > 0 ? p.lr / static_cast<float>(o.lr) : 1.0f;
  };
  std::vector<ops::AdamwTensors> tensors;
  for (const nn::Param& p : model_.params())
    tensors.push_back({p.master, p.value.data == p.master.data ? Tensor() : p.value.detach(),
                       p.var.grad, p.m, p.v, p.decay ? o.weight_decay : 0.0f, rate(p)});
  Context c = context(false);
  ops::adamw(c, tensors, {o.beta1, o.beta2, o.eps}, scalars_);
}

std::optional<double> Trainer::validate(const TokenStream& stream,
                                        const std::function<bool()>& stop) {
  require(stream.targets() > 0, "the validation data has nothing to predict");
  // What cannot go on for ever is judged as it is trained, by sequences that start from nothing.
  const bool carry = model_.endless();
  const int64_t chunk =
      carry ? std::min(options_.batch_size * options_.seq_len, kValidationChunk) : options_.seq_len;
  nn::State states[2] = {model_.make_state(1), model_.make_state(1)};  // in and out take turns
  double nll = 0;
  for (int64_t begin = 0, turn = 0; begin < stream.size(); begin += chunk, turn = 1 - turn) {
    if (stop && stop()) return std::nullopt;
    const Batch batch =
        cut_batch(stream, {&begin, 1}, std::min(chunk, stream.size() - begin), carry && begin > 0);
    models::Pass pass;
    if (carry) {
      pass.state_in = &states[turn];
      pass.state_out = &states[1 - turn];
    }
    nll += loss_of(batch, pass);
  }
  return nll / static_cast<double>(stream.targets());
}

std::optional<double> Trainer::validate(const Examples& examples,
                                        const std::function<bool()>& stop) {
  require(examples.size() > 0, "the validation data has no examples");
  double sum = 0, targets = 0;
  for (int64_t i = 0; i < examples.size(); i += options_.batch_size) {
    if (stop && stop()) return std::nullopt;
    std::vector<int64_t> which(
        static_cast<size_t>(std::min(options_.batch_size, examples.size() - i)));
    std::iota(which.begin(), which.end(), i);
    const Batch batch = read_batch(examples, which);
    sum += loss_of(batch, {});
    targets += static_cast<double>(batch.n_targets);
  }
  return sum / targets;
}

double Trainer::loss_of(const Batch& batch, const models::Pass& pass) {
  reserve(batch, pass, false);
  Context c = context(false);
  return number(run_pass(c, model_, batch, staging_, pass, 1.0f).loss);
}

}  // namespace krait
