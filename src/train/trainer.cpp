#include "krait/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "krait/autograd/plan.h"
#include "krait/tensor/memory.h"
#include "krait/train/finite.h"
#include "krait/train/pass.h"

namespace krait {

// Random streams of dropout, 2^20 for a micro-batch: away from those of initial values and the shuffle.
constexpr uint64_t kDropoutStream = uint64_t{1} << 61;
constexpr int kDropoutStreamsLog2 = 20;

constexpr int64_t kValidationChunk = 4096;  // tokens of a pass
constexpr size_t kMostKinds = 16;           // of steps that are remembered

Trainer::Trainer(models::LanguageModel& model, const TokenStream& data, const TrainOptions& o)
    : Trainer(model,
              std::make_unique<Batcher>(
                  data, BatcherOptions{o.batch_size, o.seq_len, o.order, o.carry_state, o.seed}),
              o) {}

Trainer::Trainer(models::Model& model, std::unique_ptr<Batches> batches, const TrainOptions& o)
    : Trainer(model, o) {
  read(std::move(batches), o.steps);
}

Trainer::Trainer(models::Model& model, const TrainOptions& options)
    : model_(model), options_(options), stream_(model.params().device()) {
  require(options.grad_accum == 1 || model.params().gradients_add_up(),
          "[trainer] the model has no memory to add up the gradients of {} batches",
          options.grad_accum);
  make_numbers();
  arena_ = Arena(plan_training(model, options).step, device());
  if (options.carry_state)
    for (nn::State& s : states_) s = model.make_state(options.batch_size);
}

void Trainer::read(std::unique_ptr<Batches> batches, int64_t steps) {
  batches_ = std::move(batches);
  options_.steps = steps;
  ahead_ = {};
}

Context Trainer::context(bool training) {
  arena_.reset();
  tape_.reset();
  return context_as_it_is(training);
}

Context Trainer::context_as_it_is(bool training) {
  Context c;
  c.device = device();
  c.stream = stream_;
  c.arena = &arena_;
  c.tape = training ? &tape_ : nullptr;
  c.activation = options_.dtype;
  c.training = training;
  return c;
}

models::Pass Trainer::training_pass(int64_t k) {
  models::Pass pass;
  pass.recompute = options_.recompute;
  pass.dropout = options_.dropout;
  if (router_) pass.router = router_.select(0, k);
  pass.drop_path = options_.drop_path;
  pass.label_smoothing = options_.label_smoothing;
  pass.balance_gradient = 1.0f / static_cast<float>(options_.grad_accum);
  if (options_.carry_state) {
    pass.state_in = &states_[(turn() + k) % 2];
    pass.state_out = &states_[(turn() + k + 1) % 2];
  }
  return pass;
}

// The arena is made for batches without document borders; others may need more.
void Trainer::reserve(const PlacedBatch& batch, const models::Pass& pass, bool training) {
  const Context like = context(training);
  // The plan takes memory for them, where the step does.
  if (training) model_.params().forget_gradients();
  const size_t bytes =
      plan(like, training, [&](Context& c) { run_pass(c, model_, batch, pass, 1.0f); }).bytes;
  if (training) model_.params().forget_gradients();
  if (bytes <= arena_.capacity()) return;
  kinds_.clear();
  arena_ = Arena(0);
  arena_ = Arena(bytes, device());
}

std::vector<Batch> Trainer::batches_of(int64_t step) {
  std::vector<Batch> batches;
  for (int64_t k = 0; k < options_.grad_accum; ++k)
    batches.push_back(batches_->at((step - 1) * options_.grad_accum + k));
  return batches;
}

StepResult Trainer::step() {
  const int64_t step = steps_done_ + 1, K = options_.grad_accum;
  if (ahead_.step != step) ahead_ = {step, batches_of(step)};
  const std::vector<Batch> batches = std::exchange(ahead_, {}).batches;
  const int64_t targets =
      std::accumulate(batches.begin(), batches.end(), int64_t{0},
                      [](int64_t sum, const Batch& b) { return sum + b.n_targets; });
  std::vector<PlacedBatch> placed;
  for (int64_t k = 0; k < K; ++k) {
    Context c = context(true);
    placed.push_back(place(c, staging_, static_cast<size_t>(k) * kPlacesOfBatch,
                           batches[static_cast<size_t>(k)]));
    if (placed.back().packed) reserve(placed.back(), training_pass(k), true);
  }
  StepResult r;
  r.lr = learning_rate(options_, step);
  set_numbers(step, r.lr, targets);
  run(placed);
  read_ahead(step + 1);

  std::vector<float> numbers(static_cast<size_t>(numbers_.numel()));
  download(numbers_, numbers.data(), stream_);  // waits for the step
  const float* const losses = numbers.data() + ops::kStepScalars;
  double loss = std::accumulate(losses, losses + K, 0.0), dropped = 0;
  for (const float* at = losses + K; at != numbers.data() + numbers.size(); at += 2) {
    loss += static_cast<double>(at[0]) / static_cast<double>(K);
    dropped += static_cast<double>(at[1]);
  }
  r.grad_norm = numbers[ops::kGradNorm];
  if (!std::isfinite(loss) || !std::isfinite(r.grad_norm))
    fail_not_finite(model_.params(), step, loss, r.grad_norm);
  steps_done_ = step;
  r.loss = targets > 0 ? loss : std::numeric_limits<double>::quiet_NaN();
  r.dropped = static_cast<int64_t>(dropped);
  r.tokens = K * batches_->inputs();
  return r;
}

// While a GPU is at work. What cannot be read is said by the step that needs it.
void Trainer::read_ahead(int64_t step) {
  if (device().type != Device::cuda || step > options_.steps) return;
  try {
    ahead_ = {step, batches_of(step)};
  } catch (const Error&) {
    ahead_ = {};
  }
}

void Trainer::make_numbers() {
  const int64_t K = options_.grad_accum, routers = model_.routes() ? K * model_.n_layer() * 2 : 0;
  const int64_t n = ops::kStepScalars + K + routers;
  const size_t floats = (static_cast<size_t>(n) * sizeof(float) + 7) / 8 * 8;
  numbers_memory_ = DeviceMemory(device(), floats + sizeof(uint64_t));
  numbers_ = Tensor(numbers_memory_.data(), DType::f32, {n}, device());
  zero_bytes(numbers_);
  scalars_ = numbers_.slice(0, 0, ops::kStepScalars);
  losses_ = numbers_.slice(0, ops::kStepScalars, ops::kStepScalars + K);
  if (routers > 0)
    router_ = numbers_.slice(0, ops::kStepScalars + K, n).reshape({K, model_.n_layer(), 2});
  rng_offset_ = Tensor(numbers_memory_.data() + floats, DType::i64, {1}, device());
}

void Trainer::set_numbers(int64_t step, double lr, int64_t targets) {
  const auto bias = [&](float beta) {
    return static_cast<float>(-std::expm1(static_cast<double>(step) * std::log(double{beta})));
  };
  constexpr int kGiven = ops::kLossScale + 1;  // the others are the step's to say
  float values[kGiven] = {};
  values[ops::kLearningRate] = static_cast<float>(lr);
  values[ops::kBias1] = bias(options_.beta1);
  values[ops::kBias2] = bias(options_.beta2);
  values[ops::kLossScale] =
      targets > 0 ? static_cast<float>(1.0 / static_cast<double>(targets)) : 0.0f;
  upload(values, scalars_.slice(0, 0, kGiven), stream_);
  const int64_t offset = ((step - 1) * options_.grad_accum) << kDropoutStreamsLog2;
  upload(&offset, rng_offset_, stream_);
}

// Everything that decides which launches a step consists of and which memory they work on.
static std::vector<int64_t> kind_of(const std::vector<PlacedBatch>& batches, int64_t turn) {
  std::vector<int64_t> kind = {turn};
  const auto address = [](const Tensor& t) {
    return static_cast<int64_t>(reinterpret_cast<uintptr_t>(t.data));
  };
  for (const PlacedBatch& b : batches) {
    for (const Tensor& t : {b.feed.tokens, b.feed.values, b.feed.targets}) {
      kind.push_back(address(t));
      for (int i = 0; i < t.rank(); ++i) kind.push_back(t.size(i));
    }
    kind.push_back(b.carried);
    if (!b.packed) continue;
    const ops::Packing& p = b.packing;
    for (const Tensor& t : {p.begin, p.state_in, p.state_out}) kind.push_back(address(t));
    kind.insert(kind.end(), {p.n, p.longest});
  }
  return kind;
}

bool Trainer::records() const {
  return device().type == Device::cuda && !(options_.carry_state && model_.carries_by_host());
}

void Trainer::record(Graph& graph, const std::vector<PlacedBatch>& batches) {
  const OwnStream apart(device(), true);
  graph = Graph(device(), apart, [&] { queue(batches, apart); });
}

void Trainer::prepare() {
  if (!records()) return;
  const models::Feed feed = model_.sketch(options_.batch_size, options_.seq_len);
  std::vector<PlacedBatch> batches;
  for (int64_t k = 0; k < options_.grad_accum; ++k) {
    Context c = context(true);
    batches.push_back(
        {.feed = reserve_feed(c, staging_, feed, static_cast<size_t>(k) * kPlacesOfBatch)});
    batches.back().carried = options_.carry_state && k > 0;
  }
  record(kinds_[kind_of(batches, turn())], batches);
}

void Trainer::run(const std::vector<PlacedBatch>& batches) {
  if (!records()) return queue(batches, stream_);
  if (kinds_.size() == kMostKinds) kinds_.clear();
  const auto [it, fresh] = kinds_.try_emplace(kind_of(batches, turn()));
  if (fresh) return queue(batches, stream_);
  if (!it->second) record(it->second, batches);
  it->second.replay(stream_);
  ++replayed_;
}

// The whole step. Nothing in here may depend on a number of the step that is known on the host only.
void Trainer::queue(const std::vector<PlacedBatch>& batches, Stream stream) {
  model_.params().forget_gradients();
  const ops::LossScale scale(1.0f, scalars_.as<float>() + ops::kLossScale);
  for (size_t k = 0; k < batches.size(); ++k) {
    const auto i = static_cast<int64_t>(k);
    Context c = context(true);
    c.stream = stream;
    c.rng = {options_.seed, kDropoutStream + (uint64_t{k} << kDropoutStreamsLog2)};
    c.rng_offset = static_cast<const uint64_t*>(rng_offset_.data);
    copy(c, run_pass(c, model_, batches[k], training_pass(i), scale).loss,
         losses_.slice(0, i, i + 1));
  }
  Context c = context_as_it_is(false);
  c.stream = stream;
  clip_gradients(c, model_.params(), options_.clip, scalars_, losses_);
  update(c);
}

void Trainer::update(Context& c) {
  const TrainOptions& o = options_;
  // Those with a learning rate of their own follow the schedule in proportion.
  const auto rate = [&](const nn::Param& p) {
    return p.lr > 0 && o.lr > 0 ? p.lr / static_cast<float>(o.lr) : 1.0f;
  };
  std::vector<ops::AdamwTensors> tensors;
  for (const nn::Param& p : model_.params())
    if (p.trained)
      tensors.push_back({p.value.detach(), p.low, p.var.grad, p.m, p.v,
                         p.decay ? o.weight_decay : 0.0f, rate(p)});
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

std::optional<Judgement> Trainer::validate(const Examples& examples,
                                           const std::function<bool()>& stop) {
  const size_t room = arena_.capacity();
  auto judged = judge(model_, examples, options_.dtype, options_.batch_size, arena_,
                      [&](int64_t) { return !stop || !stop(); });
  if (arena_.capacity() != room) kinds_.clear();
  return judged;
}

double Trainer::loss_of(const Batch& batch, const models::Pass& pass) {
  Context c = context(false);
  const PlacedBatch placed = place(c, validation_staging_, 0, batch);
  reserve(placed, pass, false);
  float loss = 0;
  download(run_pass(c, model_, placed, pass, 1.0f).loss, &loss, stream_);
  return loss;
}

}  // namespace krait
