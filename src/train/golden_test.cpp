// Ten training steps of every language model among the golden files, by the rule of its train.json.
#include <gtest/gtest.h>

#include <cmath>

#include "krait/base/json.h"
#include "krait/io/model.h"
#include "krait/io/safetensors.h"
#include "krait/testing/files.h"
#include "krait/testing/golden.h"
#include "krait/train/trainer.h"

namespace krait {
namespace {

namespace fs = std::filesystem;

TrainOptions options_of(const JsonView& rule, Recompute recompute) {
  TrainOptions o;
  o.batch_size = rule.integer("B");
  o.seq_len = rule.integer("L");
  o.steps = rule.integer("steps");
  o.lr = rule.number("lr");
  o.beta1 = rule.json().at("betas").at(0).get<float>();
  o.beta2 = rule.json().at("betas").at(1).get<float>();
  o.eps = static_cast<float>(rule.number("eps"));
  o.weight_decay = static_cast<float>(rule.number("weight_decay"));
  o.clip = 1.0f;
  o.order = Order::sequential;
  o.recompute = recompute;
  return o;
}

TokenStream tokens_of(const fs::path& folder, int64_t vocab_size) {
  const TensorFile file = read_safetensors(folder / "case.safetensors");
  const Tensor& t = file.at("train.tokens");
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < t.numel(); ++i) ids.push_back(static_cast<int32_t>(get(t, i)));
  TokenStream stream(vocab_size);
  stream.append(ids, "train.tokens");
  return stream;
}

void train_as_the_rule_says(const fs::path& folder, Recompute recompute) {
  SCOPED_TRACE(folder.filename().string() + ", recompute " + to_string(recompute));
  const Json json = read_json(folder / "train.json");
  const TrainOptions o = options_of(JsonView(json, "train.json"), recompute);
  const LoadedModel loaded =
      load_model(folder / "model", {nn::Purpose::training, DType::f32, testing::test_device()});
  const TokenStream stream = tokens_of(folder, loaded.model->config().vocab_size);
  Trainer trainer(*loaded.model, stream, o);

  const Json& exact = json.at("float64");
  const double loss_bound = 4 * json.at("tolerance").at("loss_f32_max_abs_err").get<double>();
  const double norm_bound = 4 * json.at("tolerance").at("grad_norm_f32_max_rel_err").get<double>();
  for (int64_t s = 0; s < o.steps; ++s) {
    const StepResult r = trainer.step();
    const double loss = exact.at("losses").at(static_cast<size_t>(s)).get<double>();
    const double norm = exact.at("grad_norms").at(static_cast<size_t>(s)).get<double>();
    EXPECT_NEAR(r.loss, loss, loss_bound) << "step " << s + 1;
    EXPECT_NEAR(r.grad_norm / norm, 1.0, norm_bound) << "step " << s + 1;
  }
  for (const nn::Param& p : loaded.model->params()) {
    const Json& all = exact.at("parameters");
    for (const auto& [name, t] :
         testing::stored_parts(p, p.value, [&](const std::string& n) { return all.contains(n); })) {
      const Json& stored = all.at(name);
      // Of this parameter, or, where a case says no more, of the worst one.
      const Json& error = stored.contains("f32_max_abs_err")
                              ? stored.at("f32_max_abs_err")
                              : json.at("tolerance").at("param_f32_max_abs_err");
      const double e = 4 * error.get<double>();
      const auto n = static_cast<double>(t.numel());
      double sum = 0, squares = 0;
      for (const double v : testing::to_double(t)) {
        sum += v;
        squares += v * v;
      }
      EXPECT_NEAR(sum, stored.at("sum").get<double>(), e * n) << name;
      EXPECT_NEAR(std::sqrt(squares), stored.at("l2").get<double>(), e * std::sqrt(n)) << name;
    }
  }
}

TEST(GoldenTraining, T3_TenStepsAreThoseOfTheForeignImplementation) {
  KRAIT_GOLDEN_OR_SKIP(golden);
  int cases = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(golden)) {
    if (!fs::exists(entry.path() / "train.json")) continue;
    if (!testing::is_language_model(read_json(entry.path() / "case.json").at("system"))) continue;
    ++cases;
    for (const Recompute r : {Recompute::none, Recompute::cheap, Recompute::layer})
      train_as_the_rule_says(entry.path(), r);
  }
  if (cases == 0) GTEST_SKIP() << "no golden case of a language model with a train.json";
}

}  // namespace
}  // namespace krait
