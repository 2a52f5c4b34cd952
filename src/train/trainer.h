// The trainer: steps of AdamW over micro-batches, on the device of the parameters. All that a step depends
// on can be saved and loaded: weights, moments, carried states, and the number of the step, from which the
// position in the data and the random numbers follow.
#pragma once
#include <filesystem>
#include <functional>
#include <map>
#include <optional>

#include "krait/autograd/tape.h"
#include "krait/data/batcher.h"
#include "krait/data/judge.h"
#include "krait/models/language_model.h"
#include "krait/ops/adamw/adamw.h"
#include "krait/tensor/graph.h"
#include "krait/train/memory.h"
#include "krait/train/options.h"
#include "krait/train/pass.h"

namespace krait {

struct StepResult {
  // Mean over the targets of the step, NaN where there is none; with experts their load-balancing loss is
  // added.
  double loss = 0;
  double grad_norm = 0;  // before clipping
  double lr = 0;
  int64_t tokens = 0;   // inputs read
  int64_t dropped = 0;  // choices of experts that found no room, over all layers
};

class Trainer {
 public:
  // `model` has memory for training, and must outlive the trainer.
  Trainer(models::Model& model, const TrainOptions& options);
  // Sets the data, and how many steps there will be in all. Call it before the first step, and
  // before load.
  void read(std::unique_ptr<Batches> batches, int64_t steps);
  Trainer(models::Model& model, std::unique_ptr<Batches> batches, const TrainOptions& options);
  // The windows of a stream, which must outlive the trainer too.
  Trainer(models::LanguageModel& model, const TokenStream& data, const TrainOptions& options);

  // Error for a loss or gradient that is not finite, naming step, layer and tensor; the weights are then
  // those of the step before.
  StepResult step();
  // On a GPU records the first step ahead of time, so that it costs no more than those that follow:
  // loading kernels and planning products come before it. It reads no data and trains nothing;
  // another thread may set the weights meanwhile.
  void prepare();
  int64_t steps_done() const { return steps_done_; }
  // Steps that were a replay of recorded work. On a GPU the first step of a kind (sizes, cut into
  // sequences, memory) is queued launch by launch, unless it was prepared; the second is recorded,
  // and it and later ones are replayed.
  int64_t replayed() const { return replayed_; }
  const TrainOptions& options() const { return options_; }
  const Arena& arena() const { return arena_; }

  // Mean negative log-likelihood of a stream, in nats a predicted token, with the state carried through
  // each document: the exact likelihood, as `krait eval` gives it. (Of models that are not
  // endless: that of sequences of seq_len tokens.) Empty where `stop` became true.
  std::optional<double> validate(const TokenStream& stream, const std::function<bool()>& stop = {});
  // The judgement of examples, read without what is random in training. Empty as above.
  std::optional<Judgement> validate(const Examples& examples,
                                    const std::function<bool()>& stop = {});

  // trainer.safetensors in `directory`: moments and carried states, the position in its metadata. The
  // weights are saved and loaded by krait/io/model. load throws Error where the file belongs to other
  // options or other data, since the run would not be the same.
  void save(const std::filesystem::path& directory) const;
  void load(const std::filesystem::path& directory);

 private:
  Context context(bool training);  // with nothing in the arena
  Context context_as_it_is(bool training);
  std::vector<Batch> batches_of(int64_t step);
  void read_ahead(int64_t step);
  models::Pass training_pass(int64_t k);  // of micro-batch k of the next step
  void reserve(const PlacedBatch& batch, const models::Pass& pass, bool training);
  double loss_of(const Batch& batch, const models::Pass& pass);  // Σ over its targets
  void make_numbers();
  void set_numbers(int64_t step, double lr, int64_t targets);
  bool records() const;
  void record(Graph& graph, const std::vector<PlacedBatch>& batches);
  void run(const std::vector<PlacedBatch>& batches);
  void queue(const std::vector<PlacedBatch>& batches, Stream stream);
  void update(Context& c);
  Device device() const { return model_.params().device(); }
  // Index of the state that the next step starts from, where states are carried.
  int64_t turn() const { return options_.carry_state ? steps_done_ * options_.grad_accum % 2 : 0; }
  const nn::State* carried() const { return options_.carry_state ? &states_[turn()] : nullptr; }
  std::string signature() const;

  models::Model& model_;
  TrainOptions options_;
  std::unique_ptr<Batches> batches_;
  struct {
    int64_t step = 0;
    std::vector<Batch> batches;
  } ahead_;  // of the step that comes next, where they were read early
  OwnStream stream_;
  Arena arena_ = Arena(0);
  Tape tape_;
  Staging staging_, validation_staging_;
  nn::State states_[2];  // in and out take turns
  // The numbers of a step, on the device: its work reads and writes them there. One block, read
  // back in one copy.
  DeviceMemory numbers_memory_;
  Tensor numbers_;     // float32, all that follow
  Tensor scalars_;     // see ops::StepScalar
  Tensor losses_;      // (K)
  Tensor router_;      // (K, n_layer, 2), of models with experts: see Pass::router
  Tensor rng_offset_;  // (1) int64: see Context::rng_offset
  // Steps that ran or were prepared, by what they work on, with what was recorded of them.
  std::map<std::vector<int64_t>, Graph> kinds_;
  int64_t steps_done_ = 0, replayed_ = 0;
};

}  // namespace krait
