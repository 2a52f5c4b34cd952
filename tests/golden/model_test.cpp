// Whole models against foreign implementations: logits, loss, gradients, states, greedy tokens; and the same
// logits by chunks, by steps and after a fork. Errors at most four times those of the foreign float32 run.
#include <cmath>
#include <set>

#include "cases.h"
#include "krait/infer/document_reader.h"
#include "krait/infer/generate.h"
#include "krait/io/model.h"
#include "krait/testing/op_test.h"
#include "krait/testing/planned_run.h"

namespace krait {
namespace {

using testing::GoldenCase;
using testing::Values;

Values values(const Tensor& t) { return testing::to_double(t); }

// Row b of a (B, ...) tensor.
Values row(const Tensor& t, int64_t b) { return values(t.slice(0, b, b + 1)); }

// A part of a key cache. The files hold keys and values of a layer together, (B, L, 2, Hkv, P), or not at
// all; no error of the foreign run is stated for them, that of the logits is as large as any.
void expect_cache(const GoldenCase& g, const std::string& name, const Tensor& part, int64_t L) {
  if (name.ends_with(".length")) {
    for (const double n : values(part)) EXPECT_EQ(n, static_cast<double>(L)) << name;
    return;
  }
  const Tensor* both = g.data.find(name.substr(0, name.size() - 1) + "kv");
  if (!both) return;
  const Tensor one = both->select(2, name.ends_with(".k") ? 0 : 1);
  EXPECT_LE(testing::max_abs_error(values(part), values(one)), g.bound("logits_f32_max_abs_err"))
      << name;
}

class GoldenModel : public ::testing::TestWithParam<std::filesystem::path> {};

// A session that reads a prompt in chunks, and the logits of its last token.
Values last_logits(const models::LanguageModel& model, std::span<const int32_t> ids,
                   int64_t chunk) {
  SessionOptions o;
  o.chunk = chunk;
  Session s(model, o);
  const std::array rows = {ids};
  s.read(rows);
  return values(s.logits());
}

// Where the layers of experts say what balance costs.
class RouterReport {
 public:
  explicit RouterReport(const models::LanguageModel& model) {
    if (!model.routes()) return;
    const Shape shape = {model.config().n_layer, 2};
    memory_ = DeviceMemory(testing::test_device(), static_cast<size_t>(shape.numel()) * 4);
    tensor_ = Tensor(memory_.data(), DType::f32, shape, testing::test_device());
    zero_bytes(tensor_);
  }
  const Tensor& tensor() const { return tensor_; }
  double balance() const {
    const Values rows = testing::to_double(tensor_);
    double sum = 0;
    for (size_t i = 0; i < rows.size(); i += 2) sum += rows[i];
    return sum;
  }

 private:
  DeviceMemory memory_;
  Tensor tensor_;
};

TEST_P(GoldenModel, LogitsLossAndStates) {
  KRAIT_GOLDEN_LANGUAGE_MODEL(GetParam());
  const GoldenCase g(GetParam());
  const LoadedModel loaded =
      load_model(g.model, {nn::Purpose::inference, DType::f32, testing::test_device()});
  const models::LanguageModel& model = *loaded.model;
  std::vector<int32_t> ids = g.ids("input_ids");
  const int64_t B = g.data.at("input_ids").size(0), L = g.data.at("input_ids").size(1);
  const Tensor tokens = testing::on_test_device(Tensor(ids.data(), DType::i32, {B, L}));

  nn::State state = model.make_state(B, L);
  RouterReport router(model);
  Values logits;
  const testing::PlannedRun run(model.params().device(), false, [&](Context& c) {
    models::Pass pass;
    pass.state_out = &state;
    pass.router = router.tensor();
    const Tensor out = model.logits(c, model.hidden(c, tokens, pass));
    if (!c.planning()) logits = values(out);
  });

  const Values expected = values(g.data.at("logits"));
  EXPECT_LE(testing::max_abs_error(logits, expected), g.bound("logits_f32_max_abs_err"));
  const auto V = static_cast<size_t>(model.config().padded_vocab());
  ASSERT_EQ(logits.size(), ids.size() * V);
  double loss = 0;
  for (size_t t = 0; t < ids.size(); ++t) {
    if ((t + 1) % static_cast<size_t>(L) == 0) continue;
    double sum = 0;
    for (size_t v = 0; v < V; ++v) sum += std::exp(logits[t * V + v]);
    loss += std::log(sum) - logits[t * V + static_cast<size_t>(ids[t + 1])];
  }
  loss = loss / static_cast<double>(B * (L - 1)) + router.balance();
  const double exact = g.json.at("loss").get<double>();
  EXPECT_NEAR(loss, exact, g.loss_bound(exact, B * (L - 1)));
  for (size_t p = 0; p < state.parts().size(); ++p) {
    const std::string& name = state.parts()[p].name;
    if (name.ends_with(".length") || name.ends_with(".k") || name.ends_with(".v")) {
      expect_cache(g, name, state.tensor(p), L);
      continue;
    }
    if (name == "state.position") {
      EXPECT_EQ(values(state.tensor(p)), Values(static_cast<size_t>(B), static_cast<double>(L)));
      continue;
    }
    if (!g.data.find(name)) continue;  // this case has no states
    const std::string kind = name.substr(name.rfind('.') + 1);
    const Values last = values(g.data.at(name));
    EXPECT_LE(testing::max_abs_error(values(state.tensor(p)), last), g.state_bound(kind, last))
        << name;
  }
}

TEST_P(GoldenModel, EveryGradient) {
  KRAIT_GOLDEN_LANGUAGE_MODEL(GetParam());
  const GoldenCase g(GetParam());
  if (std::none_of(g.data.begin(), g.data.end(),
                   [](const NamedTensor& t) { return t.name.starts_with("grad."); }))
    GTEST_SKIP() << "no gradients in this case";
  for (const Recompute recompute : {Recompute::none, Recompute::cheap, Recompute::layer}) {
    const LoadedModel loaded =
        load_model(g.model, {nn::Purpose::training, DType::f32, testing::test_device()});
    models::LanguageModel& model = *loaded.model;
    std::vector<int32_t> ids = g.ids("input_ids"), targets(ids.begin() + 1, ids.end());
    targets.push_back(-1);
    const int64_t B = g.data.at("input_ids").size(0), L = g.data.at("input_ids").size(1);
    for (int64_t b = 0; b < B; ++b) targets[static_cast<size_t>((b + 1) * L - 1)] = -1;
    const Tensor tokens = testing::on_test_device(Tensor(ids.data(), DType::i32, {B, L})),
                 next = testing::on_test_device(Tensor(targets.data(), DType::i32, {B, L}));

    double loss = 0;
    RouterReport router(model);
    const testing::PlannedRun run(model.params().device(), true, [&](Context& c) {
      model.params().forget_gradients();
      models::Pass pass;
      pass.recompute = recompute;
      pass.router = router.tensor();
      const Tensor hidden = model.hidden(c, tokens, pass);
      const Tensor sum = model.loss(c, hidden, next, 1.0f / static_cast<float>(B * (L - 1))).loss;
      if (!c.planning()) loss = values(sum)[0] + router.balance();
      c.tape->backward(c);
    });

    const double exact = g.json.at("loss").get<double>();
    EXPECT_NEAR(loss, exact, g.loss_bound(exact, B * (L - 1)));
    std::set<std::string> unseen;
    for (const NamedTensor& t : g.data)
      if (t.name.starts_with("grad.")) unseen.insert(t.name);
    for (const nn::Param& p : model.params()) {
      EXPECT_TRUE(p.var.written) << p.name;
      for (const auto& [name, grad] : testing::stored_parts(
               p, p.var.grad, [&](const auto& n) { return unseen.count("grad." + n) > 0; })) {
        ASSERT_EQ(unseen.erase("grad." + name), 1u) << name << " has no golden gradient";
        const Values expected = values(g.data.at("grad." + name));
        EXPECT_LE(testing::max_abs_error(values(grad), expected),
                  g.bound("grad_f32_max_rel_err") * testing::max_abs(expected))
            << name << ", recompute " << static_cast<int>(recompute);
      }
    }
    EXPECT_TRUE(unseen.empty()) << *unseen.begin() << " is no parameter of ours";
  }
}

TEST_P(GoldenModel, GreedyTokens) {
  KRAIT_GOLDEN_LANGUAGE_MODEL(GetParam());
  const GoldenCase g(GetParam());
  const LoadedModel loaded =
      load_model(g.model, {nn::Purpose::inference, DType::f32, testing::test_device()});
  if (!g.json.contains("greedy")) GTEST_SKIP() << "no greedy tokens in this case";
  const std::vector<int32_t> prompt = g.ids("greedy.prompt"), expected = g.ids("greedy.tokens");
  // Twice side by side, so that a batch is seen to change nothing.
  SessionOptions o;
  o.batch = 2;
  Session session(*loaded.model, o);
  const std::array rows = {std::span<const int32_t>(prompt), std::span<const int32_t>(prompt)};
  session.read(rows);
  GenerateOptions options;
  options.max_new = static_cast<int64_t>(expected.size());
  options.sampler.temperature = 0;
  const std::vector<Generated> out = generate(session, {{prompt, 0}, {prompt, 1}}, options);
  EXPECT_EQ(out[0].tokens, expected);
  EXPECT_EQ(out[1].tokens, expected);
}

TEST_P(GoldenModel, T19_T20_ChunksStepsAndForksGiveTheSameLogits) {
  KRAIT_GOLDEN_LANGUAGE_MODEL(GetParam());
  const GoldenCase g(GetParam());
  const LoadedModel loaded =
      load_model(g.model, {nn::Purpose::inference, DType::f32, testing::test_device()});
  const models::LanguageModel& model = *loaded.model;
  const std::vector<int32_t> ids = g.ids("input_ids");
  const int64_t B = g.data.at("input_ids").size(0), L = g.data.at("input_ids").size(1);
  const double bound = g.bound("logits_f32_max_abs_err");
  for (int64_t b = 0; b < B; ++b) {
    const std::span<const int32_t> line =
        std::span(ids).subspan(static_cast<size_t>(b * L), static_cast<size_t>(L));
    const Tensor logits =
        g.data.at("logits").slice(0, b, b + 1).reshape({L, model.config().padded_vocab()});
    for (const int64_t chunk : {1, 2, 3, 17, 512})
      EXPECT_LE(testing::max_abs_error(last_logits(model, line, chunk), row(logits, L - 1)), bound)
          << "chunks of " << chunk;
    Session steps(model, {});
    Snapshot middle;
    for (int64_t t = 0; t < L; ++t) {
      steps.step(line.subspan(static_cast<size_t>(t), 1));
      EXPECT_LE(testing::max_abs_error(values(steps.logits()), row(logits, t)), bound)
          << "step " << t;
      if (t == L / 2) middle = steps.snapshot(0);
    }
    steps.restore(0, middle);
    const std::array rest = {line.subspan(static_cast<size_t>(L / 2 + 1))};
    steps.read(rest);
    EXPECT_LE(testing::max_abs_error(values(steps.logits()), row(logits, L - 1)), bound)
        << "after a rewind";
  }
}

TEST_P(GoldenModel, LongSequence) {
  KRAIT_GOLDEN_LANGUAGE_MODEL(GetParam());
  const GoldenCase g(GetParam());
  if (!g.json.contains("long")) GTEST_SKIP() << "no long sequence in this case";
  const LoadedModel loaded =
      load_model(g.model, {nn::Purpose::inference, DType::f32, testing::test_device()});
  const models::LanguageModel& model = *loaded.model;
  const std::vector<int32_t> ids = g.ids("long.input_ids");
  const Json& about = g.json.at("long");
  const double bound =
      4 * g.json.at("tolerance").at("long").at("logits_f32_max_abs_err").get<double>();

  std::vector<Values> logits;
  DocumentReader reader(
      model, DType::f32,
      [&](Context& c, const Tensor& hidden, const DocumentPass&) {
        each_logits(c, model, hidden, [&](int64_t, const Tensor& block) {
          for (int64_t i = 0; !c.planning() && i < block.size(0); ++i)
            logits.push_back(row(block, i));
        });
      },
      /*chunk=*/128);
  reader.begin();
  reader.add(ids);
  reader.end();
  reader.finish();
  ASSERT_EQ(logits.size(), ids.size());

  const Tensor& expected = g.data.at("long.logits");
  const std::vector<int64_t> positions = about.at("positions");
  for (size_t i = 0; i < positions.size(); ++i)
    EXPECT_LE(testing::max_abs_error(
                  logits[static_cast<size_t>(positions[i])],
                  values(expected.select(expected.rank() - 2, static_cast<int64_t>(i)))),
              bound)
        << "position " << positions[i];
  double sum = 0, squares = 0, n = 0;
  for (const Values& line : logits)
    for (const double x : line) {
      sum += x;
      squares += x * x;
      ++n;
    }
  EXPECT_NEAR(sum, about.at("logits_checksum").at("sum").get<double>(), bound * n);
  EXPECT_NEAR(std::sqrt(squares), about.at("logits_checksum").at("l2").get<double>(),
              bound * std::sqrt(n));

  SessionOptions o;
  o.chunk = 64;
  Session session(model, o);
  const std::array rows = {std::span<const int32_t>(ids)};
  session.read(rows);
  const Snapshot end = session.snapshot(0);
  const double state_bound =
      4 * g.json.at("tolerance").at("long").at("state_ssm_f32_max_abs_err").get<double>();
  for (size_t p = 0; p < end.state.parts().size(); ++p)
    if (const Tensor* t = g.data.find("long." + end.state.parts()[p].name)) {
      EXPECT_LE(testing::max_abs_error(values(end.state.tensor(p)), values(*t)), state_bound)
          << end.state.parts()[p].name;
    }
}

// Mamba-3 as first released: softplus in the place of the heavy-tailed function of the decay.
TEST_P(GoldenModel, FirstReleaseOfMamba3) {
  KRAIT_GOLDEN_LANGUAGE_MODEL(GetParam());
  const GoldenCase g(GetParam());
  const Tensor* expected = g.data.find("logits.softplus_A");
  if (!expected) GTEST_SKIP() << "no such logits in this case";
  const testing::TempDir folder;
  std::filesystem::copy(g.model, folder.path(), std::filesystem::copy_options::recursive);
  Json config = read_json(folder / "config.json");
  config["ssm_cfg"]["A_activation"] = "softplus";
  write_file(folder / "config.json", config.dump());
  const LoadedModel loaded = load_model(folder.path(), {nn::Purpose::inference, DType::f32});
  const std::vector<int32_t> ids = g.ids("input_ids");
  const int64_t L = expected->size(1);
  Session session(*loaded.model, {});
  for (int64_t t = 0; t < L; ++t) {
    session.step(std::span(ids).subspan(static_cast<size_t>(t), 1));
    EXPECT_LE(
        testing::max_abs_error(values(session.logits()), values(expected->slice(1, t, t + 1))),
        g.bound("logits_f32_max_abs_err"))
        << "position " << t;
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, GoldenModel, ::testing::ValuesIn(testing::model_cases()),
                         testing::case_name);

}  // namespace
}  // namespace krait
