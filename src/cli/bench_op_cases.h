// What `krait bench op` runs: single ops, and a whole layer, on the sizes that a width implies.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "krait/base/json.h"
#include "krait/models/config.h"
#include "krait/tensor/context.h"

namespace krait::cli {

// B sequences of L tokens of a model of width D. The rest is as published: E = 2 D, heads of 64 channels.
struct OpSizes {
  int64_t B = 1, L = 512;
  models::Config model;
  DType dtype = DType::f32;
  Device device;
};

struct OpInput {
  Shape shape;
  DType dtype;
  double scale = 1, mean = 0;
  bool parameter = false;  // its gradient is float32
};

enum class OpPasses {
  forward,             // there is no backward
  forward_backward,    // each timed by itself
  forward_with_grads,  // one call that computes the gradients too
};

// `run` reads random inputs in the order given; those of floats get gradients in backward.
struct OpCase {
  std::vector<OpInput> inputs;
  std::function<Tensor(Context&, const std::vector<Tensor>&)> run;
  OrderedJson sizes = OrderedJson::object();  // besides B, L, D
  OpPasses passes = OpPasses::forward_backward;
};

using MakeOpCase = OpCase (*)(const OpSizes&);
const std::map<std::string, MakeOpCase>& op_cases();
std::map<std::string, MakeOpCase>
stream_op_cases();  // around the mixers: sums, pooling, losses, images
std::map<std::string, MakeOpCase> step_op_cases();  // what one decoded token calls
std::vector<std::string> bench_op_names();

}  // namespace krait::cli
