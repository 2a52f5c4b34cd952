// The model that tests of krait/infer share: small, and far from its initial values, so that states matter
// and logits vary.
#pragma once
#include <memory>
#include <vector>

#include "krait/base/rng.h"
#include "krait/infer/session.h"
#include "krait/models/mamba1.h"
#include "krait/testing/op_test.h"

namespace krait::testing {

using Ids = std::vector<int32_t>;

constexpr int32_t kSmallVocab = 250;  // padded to 256

// With `positions`: a learned table of as many, as MoE-Mamba has.
inline std::unique_ptr<models::LanguageModel> small_model(int64_t positions = 0) {
  models::Config config = models::mamba_config(48, 3, kSmallVocab, 8);
  nn::Mamba1Config mixer = models::mamba1_of(config);
  mixer.d_state = 8;
  config = models::with_mamba1(config, mixer);
  config.positions = positions;
  auto model = std::make_unique<models::LanguageModel>(config);
  model->params().allocate(nn::Purpose::inference, DType::f32, false, test_device());
  model->params().initialize(7);
  uint64_t stream = 100;
  for (nn::Param& p : model->params()) {
    const Philox rng{11, ++stream};
    const double scale = p.name == "backbone.norm_f.weight" ? 6.0 : 1.0;
    Values v = to_double(p.value);
    for (size_t i = 0; i < v.size(); ++i) v[i] = scale * (v[i] + 0.05 * rng.normal(i));
    set_values(p.value, v);
  }
  return model;
}

inline Ids random_ids(size_t n, uint64_t seed) {
  Ids ids(n);
  for (size_t i = 0; i < n; ++i)
    ids[i] = static_cast<int32_t>(Philox{seed, 1}.words(i)[0] % kSmallVocab);
  return ids;
}

inline Session session_of(const models::LanguageModel& model, int64_t batch, int64_t chunk = 512) {
  SessionOptions o;
  o.batch = batch;
  o.chunk = chunk;
  return Session(model, o);
}

inline void read(Session& s, const std::vector<Ids>& rows) {
  s.read(std::vector<std::span<const int32_t>>(rows.begin(), rows.end()));
}

}  // namespace krait::testing
