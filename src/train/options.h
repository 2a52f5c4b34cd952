// What a training run is asked to do. One field an option of `krait train`; defaults are its defaults.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "krait/autograd/segment.h"
#include "krait/base/dtype.h"
#include "krait/data/batch.h"

namespace krait {

enum class Schedule { constant, linear, cosine, wsd };
std::string to_string(Schedule s);
std::string to_string(Order o);
std::string to_string(Recompute r);

// The numbers of the optimisation: everything that a step depends on besides model and data.
struct TrainOptions {
  int64_t batch_size = 8;  // B: sequences of a micro-batch
  int64_t seq_len = 256;   // L
  int64_t grad_accum = 1;  // K: micro-batches of a step
  int64_t steps = 1000;
  double lr = 1e-3;
  Schedule schedule = Schedule::constant;
  int64_t warmup = 0;  // steps
  double min_lr = 0;
  float beta1 = 0.9f, beta2 = 0.95f, eps = 1e-8f;
  float weight_decay = 0.1f;
  float clip = 1.0f;  // largest global L2 norm of the gradient; 0: no limit
  float dropout = 0;
  float drop_path = 0;               // of layers of images: see models::Pass
  float label_smoothing = 0;         // of classes
  double crop_scale = 1, hflip = 0;  // of images: see Augmentation
  Order order = Order::shuffle;
  bool carry_state = false;
  Recompute recompute = Recompute::cheap;  // of what layers compute, in backward
  DType dtype = DType::f32;  // of products and activations; what is trained, and moments: float32
  uint64_t seed = 0;
  Device device;
};

// The learning rate of step `step` (from 1 on) of `o.steps`. Warm-up: lr · step / warmup for the first
// `warmup` steps. After it, with p from 0 at the end of the warm-up to 1 at the last step:
//   constant  lr
//   linear    lr + (min_lr - lr) · p
//   cosine    min_lr + (lr - min_lr) · (1 + cos(π p)) / 2
//   wsd       lr until the last fifth of all steps, then linear down to min_lr at the last step
double learning_rate(const TrainOptions& o, int64_t step);

// A run: what is trained, on what, and what is written when.
struct RunOptions {
  TrainOptions train;
  std::string model;  // fresh: a preset's name, or the path of a config.json
  std::string from;   // or a model directory whose weights are the start
  // "classification" or "regression": the model gets a head that judges sequences, with as many outputs as the
  // data has classes or numbers, and reads them by its "last" vector, the "mean", or a "token" of its own
  // (models::Task). "": what the model's config says.
  std::string task, pooling;
  std::string tokenizer;  // a tokenizer.json, "bytes", or "": the model's own (bytes for 256 ids)
  std::vector<std::string> data, valid;
  std::string out;           // RUN
  double epochs = 0;         // where above 0: it decides the number of steps
  int64_t eval_every = 200;  // steps; 0: after the last step only
  int64_t save_every = 200;  // steps; 0: after the last step only
  int64_t keep = 0;          // checkpoints step-N/ kept besides last/ and best/
  int64_t sample_every = 0;  // steps; 0: never
  std::string sample_prompt = "\n";
  std::string log;  // a second copy of log.jsonl
};

// Throws Error for more tokens, 2^40, than can be counted on.
void check_size_of_step(const TrainOptions& o);
// Throws Error naming the option that no run can have.
void check(const RunOptions& o);

// RUN/config.toml: the options of `krait train` as keys, but for --out. `krait train --config` reads it.
std::string to_toml(const RunOptions& o);

}  // namespace krait
