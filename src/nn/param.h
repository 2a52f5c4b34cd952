// Parameters: one record each, one registry a model. Whatever needs to know all parameters (files,
// optimizer, counting, moving) walks the registry; there are no parallel lists.
#pragma once
#include <deque>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "krait/autograd/tape.h"
#include "krait/base/rng.h"

namespace krait::nn {

// Fills a float32 tensor of the parameter's shape; the generator's stream is the parameter's own.
using Init = std::function<void(const Tensor&, const Philox&)>;

Init constant(float value);
Init uniform(double low, double high);
Init normal(double standard_deviation);
Init truncated_normal(double standard_deviation);  // cut at two of them
// The default of a linear layer: uniform within 1/sqrt(n), n its inputs; drawn `divide` times smaller.
Init fan_in(int64_t n, double divide = 1.0);
// softplus of it is log-uniform in [low, high], at least `floor`: biases of step sizes.
Init inverse_softplus(double low, double high, double floor);

struct Param {
  std::string name;      // as in a published Hugging Face file
  std::string original;  // as in the state-spaces layout, where it differs
  // Where files store slices along the first axis as tensors of their own (experts): their names.
  std::vector<std::string> parts;
  Shape shape;
  Init init;
  bool decay = false;  // weight decay applies
  // false: kept and saved, but moved by no gradient (what a batch norm has seen)
  bool trained = true;
  float lr = 0;               // a peak learning rate of its own; 0: the run's
  bool keep_float32 = false;  // never stored or computed in bfloat16
  const char* meaning = "";   // one line for `krait inspect --tensors`

  // The memory, set by ParamSet::allocate or by whoever maps a file.
  Tensor value;  // what ops read; `var` is set in training
  // Training in bfloat16: the 16 bits that `value` lacks of the float32 numbers that are trained
  // (see ops/adamw/adamw.h).
  Tensor low;
  // Moments of the optimizer, in training. Where there is `low`, the signs of v are part of the
  // trained number.
  Tensor m, v;
  Var var;
};

// Sets the parameter. `write` is given memory of its device to fill: of float32 if the parameter is
// trained, else of the type of `value`. The moments start anew.
void write_numbers(Param& p, const std::function<void(const Tensor&)>& write);
// The parameter in the host's memory, where it lies or in `buffer`; the float32 numbers if it is
// trained.
Tensor read_numbers(const Param& p, std::vector<std::byte>& buffer);

enum class Purpose {
  inference,
  training,
  // The gradients take memory of the step's arena (Tape::keep_in_arena): those of several batches cannot be added up.
  training_by_batch,
};

class ParamSet {
 public:
  Param& add(std::string name, const Shape& shape, Init init);

  // Takes memory for every parameter in one block on `device`; none of it is touched while
  // `planning`.
  // Inference: the values, in `dtype` (float32 if marked keep_float32), except where a file was
  // mapped in before. Training: values in `dtype`, what they lack of float32, gradients, and
  // moments, which are zero.
  void allocate(Purpose purpose, DType dtype, bool planning = false, Device device = {});
  Device device() const { return device_; }
  size_t allocated_bytes() const { return bytes_; }

  // Draws every parameter from its init.
  void initialize(uint64_t seed);
  // The next gradient that is written overwrites; if gradients live in the arena of a step, it
  // takes its memory first.
  void forget_gradients();
  bool gradients_add_up() const { return gradients_add_up_; }  // over several batches

  Param* find(const std::string& name);
  auto begin() { return params_.begin(); }
  auto end() { return params_.end(); }
  auto begin() const { return params_.begin(); }
  auto end() const { return params_.end(); }
  size_t size() const { return params_.size(); }
  int64_t numel() const;  // elements in all; a tied tensor exists once

 private:
  std::deque<Param> params_;  // which stay where they are
  std::unordered_map<std::string_view, Param*> by_name_;
  Arena memory_ = Arena(0);
  size_t bytes_ = 0;
  bool gradients_add_up_ = false;
  Device device_;
};

}  // namespace krait::nn
