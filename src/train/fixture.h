// What the tests of this layer train on: text with something to learn, and a model small enough to do it
// in a moment.
#pragma once
#include <string>

#include "krait/data/tokens.h"
#include "krait/models/language_model.h"
#include "krait/models/mamba1.h"
#include "krait/testing/op_test.h"
#include "krait/train/trainer.h"

namespace krait::testing {

inline std::string nursery_text(int lines) {
  std::string s;
  for (int i = 0; i < lines; ++i)
    s += "line " + std::to_string(i * i % 97) +
         ": the cat sat on the mat, the dog sat on the log.\n";
  return s;
}

inline TokenStream byte_stream(const std::vector<std::string>& documents) {
  TokenStream stream(256);
  for (const std::string& d : documents) {
    stream.start_document();
    stream.append(std::vector<int32_t>(d.begin(), d.end()), "test");
  }
  return stream;
}

// A byte model with memory for training.
inline std::unique_ptr<models::LanguageModel> small_model(
    uint64_t seed = 1, DType dtype = DType::f32, nn::Purpose purpose = nn::Purpose::training) {
  auto model = std::make_unique<models::LanguageModel>(models::mamba_config(32, 2, 256, 1));
  model->params().allocate(purpose, dtype, false, test_device());
  model->params().initialize(seed);
  return model;
}

inline TrainOptions small_options() {
  TrainOptions o;
  o.batch_size = 4;
  o.seq_len = 32;
  o.steps = 10;
  o.lr = 5e-3;
  o.device = test_device();
  return o;
}

// The numbers of all parameters, one after the other.
inline std::vector<float> weights(const models::LanguageModel& model) {
  std::vector<float> all;
  for (const nn::Param& p : model.params()) {
    std::vector<std::byte> buffer;
    const std::vector<float> v = to_float(nn::read_numbers(p, buffer));
    all.insert(all.end(), v.begin(), v.end());
  }
  return all;
}

}  // namespace krait::testing
