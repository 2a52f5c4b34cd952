// The algebra of a whole model: every way of cutting a sequence gives the same numbers, and gradients flow
// through whatever connects the pieces. Tolerances: docs/numerics.md.
#include "krait/models/language_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "krait/base/file.h"
#include "krait/base/threads.h"
#include "krait/models/architecture.h"
#include "krait/testing/files.h"
#include "krait/testing/op_test.h"
#include "krait/testing/planned_run.h"

namespace krait::models {
namespace {

constexpr int64_t kVocab = 37, kLength = 23;

// One of each architecture: tests/family, which the command line is tested with as well. Three layers each.
struct Small {
  std::string name;
  std::filesystem::path config;
};

std::vector<Small> family() {
  std::vector<Small> all;
  for (const auto& file : std::filesystem::directory_iterator(
           std::filesystem::path(KRAIT_SOURCE_DIR) / "tests/family"))
    all.push_back({file.path().stem().string(), file.path()});
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return all;
}

const Architecture& architecture_of(const JsonView& view, Layout layout) {
  for (const Architecture* a : architectures())
    if (a->claims(view, layout)) return *a;
  fail("no architecture claims {}", view.where());
}

Config config_of(const Small& small) {
  Json json = read_json(small.config);
  json["vocab_size"] = kVocab;
  const JsonView view(json, small.name);
  const Layout layout = view.has("model_type") ? Layout::huggingface : Layout::original;
  return architecture_of(view, layout).read(view, layout);
}

TEST(Family, HasEveryArchitecture) {
  std::set<std::string> missing;
  for (const Architecture* a : architectures()) missing.insert(a->name);
  for (const Small& small : family()) {
    const Config c = config_of(small);
    EXPECT_EQ(c.n_layer, 3) << small.name;
    missing.erase(c.architecture);
  }
  EXPECT_TRUE(missing.empty()) << "tests/family has no config of " << *missing.begin();
}

// A model moved away from its initial values, so that nothing is near zero or one by chance.
std::unique_ptr<LanguageModel> small_model(const Small& small, nn::Purpose purpose) {
  auto model = std::make_unique<LanguageModel>(config_of(small));
  model->params().allocate(purpose, DType::f32, false, testing::test_device());
  model->params().initialize(11);
  uint64_t stream = 100;
  for (nn::Param& p : model->params()) {
    const Philox rng{5, ++stream};
    testing::Values v = testing::to_double(p.value);
    for (size_t i = 0; i < v.size(); ++i) v[i] += 0.1 * rng.normal(i);
    testing::set_values(p.value, v);
  }
  return model;
}

// With room for every sequence here, and zeros behind the tokens held, so that whole tensors compare.
nn::State state_of(const LanguageModel& model, int64_t batch) {
  nn::State state = model.make_state(batch, kLength + 3);
  for (size_t p = 0; p < state.parts().size(); ++p) zero_bytes(state.tensor(p));
  return state;
}

std::vector<int32_t> random_tokens(int64_t n, uint64_t seed) {
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i)
    ids[static_cast<size_t>(i)] =
        static_cast<int32_t>(Philox{seed, 0}.uniform_double(static_cast<uint64_t>(i)) * kVocab);
  return ids;
}

Tensor as_tensor(std::vector<int32_t>& ids, const Shape& shape) {
  return testing::on_test_device(Tensor(ids.data(), DType::i32, shape));
}

std::vector<float> to_vector(const Tensor& t) { return testing::to_float(t); }

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double m = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    m = std::max(m, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return m;
}

double deviation(const std::vector<float>& v) {
  double s = 0, q = 0;
  for (const float x : v) s += x, q += static_cast<double>(x) * x;
  const double n = static_cast<double>(v.size());
  return std::sqrt(q / n - s * s / n / n);
}

std::vector<float> run(const LanguageModel& model, const Tensor& tokens, const Pass& pass) {
  std::vector<float> logits;
  const testing::PlannedRun once(model.params().device(), false, [&](Context& c) {
    const Tensor y = model.logits(c, model.hidden(c, tokens, pass));
    if (!c.planning()) logits = to_vector(y);
  });
  return logits;
}

// What float32 runs of the same sums in another order may differ by, relative to the spread of the logits.
constexpr double kTolerance = 1e-5;

class Algebra : public ::testing::TestWithParam<Small> {};
class Training : public Algebra {};

std::string name_of_case(const ::testing::TestParamInfo<Small>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(Each, Algebra, ::testing::ValuesIn(family()), name_of_case);
INSTANTIATE_TEST_SUITE_P(Each, Training, ::testing::ValuesIn(family()), name_of_case);

const std::vector<int64_t> kSteps(kLength, 1);

// A sequence cut into pieces of these lengths, the last of which takes what is left, is the whole.
void expect_whole(const LanguageModel& model, const std::vector<std::vector<int64_t>>& all_cuts) {
  std::vector<int32_t> ids = random_tokens(kLength, 1);
  const std::vector<float> whole = run(model, as_tensor(ids, {1, kLength}), {});
  const double bound = kTolerance * deviation(whole);
  for (const std::vector<int64_t>& cuts : all_cuts) {
    nn::State state = state_of(model, 1);
    std::vector<float> pieces;
    int64_t at = 0;
    size_t cut = 0;
    while (at < kLength) {
      const int64_t n = cut < cuts.size() ? cuts[cut++] : kLength - at;
      std::vector<int32_t> part(ids.begin() + at, ids.begin() + at + n);
      const auto logits = run(model, as_tensor(part, {1, n}), {nullptr, &state, &state});
      pieces.insert(pieces.end(), logits.begin(), logits.end());
      at += n;
    }
    EXPECT_LE(largest_difference(whole, pieces), bound) << "first cut " << cuts.front();
  }
}

TEST_P(Algebra, T19_T20_AnySplitOfASequenceIsTheWhole) {
  expect_whole(*small_model(GetParam(), nn::Purpose::inference),
               {{1}, {2, 1}, {10, 13}, {1, 1, 1, 20}, {7, 3, 5, 8}, kSteps});
}

TEST_P(Algebra, T23_T24_EachRowOfABatchIsItsRunAlone) {
  const auto model = small_model(GetParam(), nn::Purpose::inference);
  constexpr int64_t B = 5;
  std::vector<int32_t> ids = random_tokens(B * kLength, 2);
  const std::vector<float> batch = run(*model, as_tensor(ids, {B, kLength}), {});
  const int64_t V = model->config().padded_vocab();
  for (int64_t b = 0; b < B; ++b) {
    std::vector<int32_t> row(ids.begin() + b * kLength, ids.begin() + (b + 1) * kLength);
    const auto alone = run(*model, as_tensor(row, {1, kLength}), {});
    const std::vector<float> in_batch(batch.begin() + b * kLength * V,
                                      batch.begin() + (b + 1) * kLength * V);
    EXPECT_LE(largest_difference(alone, in_batch), kTolerance * deviation(alone)) << "row " << b;
  }
}

struct PackedIds {
  std::vector<int64_t> begin;
  std::vector<int32_t> in, out;
  ops::Packing packing;
  explicit PackedIds(const std::vector<int64_t>& lengths) : begin{0} {
    for (const int64_t n : lengths) {
      begin.push_back(begin.back() + n);
      packing.longest = std::max(packing.longest, n);
      in.push_back(-1);
      out.push_back(static_cast<int32_t>(out.size()));
    }
    packing.n = static_cast<int64_t>(lengths.size());
    packing.begin = testing::on_test_device(Tensor(begin.data(), DType::i64, {packing.n + 1}));
    packing.state_in = testing::on_test_device(Tensor(in.data(), DType::i32, {packing.n}));
    packing.state_out = testing::on_test_device(Tensor(out.data(), DType::i32, {packing.n}));
  }
};

TEST_P(Algebra, T22_T25_PackedSequencesAreTheirRunsAlone) {
  const auto model = small_model(GetParam(), nn::Purpose::inference);
  const std::vector<int64_t> lengths = {3, 1, 11, 2, 6};
  PackedIds packed(lengths);
  std::vector<int32_t> ids = random_tokens(kLength, 3);
  nn::State ends = state_of(*model, packed.packing.n);
  const auto together =
      run(*model, as_tensor(ids, {1, kLength}), {&packed.packing, nullptr, &ends});
  const int64_t V = model->config().padded_vocab();
  for (size_t s = 0; s < lengths.size(); ++s) {
    std::vector<int32_t> part(ids.begin() + packed.begin[s], ids.begin() + packed.begin[s + 1]);
    nn::State end = state_of(*model, 1);
    const auto alone = run(*model, as_tensor(part, {1, lengths[s]}), {nullptr, nullptr, &end});
    const std::vector<float> mine(together.begin() + packed.begin[s] * V,
                                  together.begin() + packed.begin[s + 1] * V);
    EXPECT_LE(largest_difference(alone, mine), kTolerance * deviation(together))
        << "sequence " << s;
    for (size_t p = 0; p < ends.parts().size(); ++p) {
      const auto row = static_cast<int64_t>(s);
      const auto expected = to_vector(end.tensor(p));
      EXPECT_LE(largest_difference(expected, to_vector(ends.tensor(p).slice(0, row, row + 1))),
                kTolerance * std::max(1.0, deviation(expected)))
          << ends.parts()[p].name;
    }
  }
}

// In bfloat16 only what remembers activations as they are may have their type.
TEST_P(Algebra, T32_StatesOfARecurrenceAreFloat32) {
  const auto model = small_model(GetParam(), nn::Purpose::inference);
  const nn::State state = model->make_state(1, kLength, {DType::bf16});
  for (size_t p = 0; p < state.parts().size(); ++p) {
    const std::string& name = state.parts()[p].name;
    if (state.tensor(p).dtype != DType::f32) {
      EXPECT_TRUE(state.parts()[p].activations &&
                  (name.ends_with(".conv") || name.ends_with(".k") || name.ends_with(".v")))
          << name;
    }
    if (name.ends_with(".ssm") || name.ends_with(".angle")) {
      EXPECT_FALSE(state.parts()[p].activations) << name;
    }
  }
}

TEST_P(Algebra, AForkGoesItsOwnWay) {
  const auto model = small_model(GetParam(), nn::Purpose::inference);
  std::vector<int32_t> ids = random_tokens(kLength, 4), left = {1, 2, 3}, right = {9, 8, 7};
  nn::State state = state_of(*model, 1);
  run(*model, as_tensor(ids, {1, kLength}), {nullptr, nullptr, &state});
  nn::State fork = state.clone();
  const auto first = run(*model, as_tensor(left, {1, 3}), {nullptr, &state, &state});
  const auto other = run(*model, as_tensor(right, {1, 3}), {nullptr, &fork, &fork});
  std::vector<int32_t> whole = ids;
  whole.insert(whole.end(), right.begin(), right.end());
  const auto expected = run(*model, as_tensor(whole, {1, kLength + 3}), {});
  const std::vector<float> tail(expected.end() - static_cast<std::ptrdiff_t>(other.size()),
                                expected.end());
  EXPECT_LE(largest_difference(tail, other), kTolerance * deviation(expected));
  EXPECT_GT(largest_difference(first, other), 0.01);
}

// Loss and all gradients of one training pass.
struct Gradients {
  float loss = 0;
  std::vector<float> values;
};

Gradients gradients(LanguageModel& model, const Pass& pass, int64_t B, int64_t L,
                    size_t* peak = nullptr) {
  std::vector<int32_t> ids = random_tokens(B * L, 6), targets = random_tokens(B * L, 7);
  targets[3] = -1;
  Gradients g;
  const testing::PlannedRun run(model.params().device(), true, [&](Context& c) {
    model.params().forget_gradients();
    const Tensor loss = model
                            .loss(c, model.hidden(c, as_tensor(ids, {B, L}), pass),
                                  as_tensor(targets, {B, L}), 0.01f)
                            .loss;
    if (!c.planning()) g.loss = to_vector(loss)[0];
    c.tape->backward(c);
  });
  if (peak) *peak = run.bytes;
  for (const nn::Param& p : model.params()) {
    EXPECT_EQ(p.var.written, p.trained) << p.name;
    const auto v = to_vector(p.var.grad);
    g.values.insert(g.values.end(), v.begin(), v.end());
  }
  return g;
}

TEST_P(Training, RecomputingMoreOrLessChangesNoBitAndSavesMemory) {
  const auto model = small_model(GetParam(), nn::Purpose::training);
  size_t all = 0, kept = 0, again = 0;
  const auto with = [&](Recompute recompute, size_t* bytes) {
    Pass pass;
    pass.recompute = recompute;
    return gradients(*model, pass, 2, 64, bytes);
  };
  const Gradients a = with(Recompute::none, &all);
  for (const auto& [recompute, bytes] :
       {std::pair{Recompute::cheap, &kept}, {Recompute::layer, &again}}) {
    const Gradients b = with(recompute, bytes);
    EXPECT_EQ(a.loss, b.loss);
    EXPECT_EQ(a.values, b.values);
  }
  // Layers of one kind: where they differ the largest may need as much by itself. On a GPU the scratch memory of
  // an op's blocks is much beside a model of this size.
  if (GetParam().name != "nemotron_h" && !GetParam().name.starts_with("blocks")) {
    EXPECT_LT(again, kept);
    EXPECT_LT(kept, all);
  }
}

TEST_P(Training, RecomputingChangesNoBitWhereStatesAreCarried) {
  const auto model = small_model(GetParam(), nn::Purpose::training);
  const auto with = [&](Recompute recompute, nn::State& out) {
    nn::State in = state_of(*model, 2);
    Pass pass;
    pass.recompute = recompute;
    pass.state_in = &in;
    pass.state_out = &out;
    return gradients(*model, pass, 2, 20);
  };
  nn::State first = state_of(*model, 2);
  const Gradients a = with(Recompute::cheap, first);
  for (const Recompute recompute : {Recompute::none, Recompute::layer}) {
    nn::State state = state_of(*model, 2);
    const Gradients b = with(recompute, state);
    EXPECT_EQ(a.loss, b.loss);
    EXPECT_EQ(a.values, b.values);
    for (size_t p = 0; p < state.parts().size(); ++p)
      EXPECT_EQ(to_vector(first.tensor(p)), to_vector(state.tensor(p))) << p;
  }
}

TEST_P(Training, BitsDoNotDependOnTheNumberOfThreads) {
  const auto model = small_model(GetParam(), nn::Purpose::training);
  const int before = threads();
  set_threads(1);
  const Gradients one = gradients(*model, {}, 3, 33);
  for (const int n : {2, 4}) {
    set_threads(n);
    const Gradients more = gradients(*model, {}, 3, 33);
    EXPECT_EQ(one.loss, more.loss) << n;
    EXPECT_EQ(one.values, more.values) << n;
  }
  set_threads(before);
}

// A model of tests/family whose config is changed; its values depend on the shapes alone.
std::unique_ptr<LanguageModel> model_with(const std::string& name,
                                          const std::function<void(Json&)>& change) {
  const std::filesystem::path file =
      std::filesystem::path(KRAIT_SOURCE_DIR) / "tests/family" / (name + ".json");
  Json json = read_json(file);
  change(json);
  const testing::TempDir dir;
  write_file(dir / "config.json", json.dump());
  return small_model({name, dir / "config.json"}, nn::Purpose::inference);
}

std::vector<float> logits_with(const std::string& name, const std::function<void(Json&)>& change) {
  std::vector<int32_t> ids = random_tokens(kLength, 8);
  return run(*model_with(name, change), as_tensor(ids, {1, kLength}), {});
}

// A step of one token may have an op of its own, which knows the usual layer alone: each way to differ from it, by
// itself.
TEST(Steps, T6_T7_OfLayersThatAreNotTheUsualOneAreTheWhole) {
  for (const char* key : {"bias", "conv_bias"}) {
    SCOPED_TRACE(key);
    const bool usual = std::string(key) == "conv_bias";
    expect_whole(*model_with("mamba", [&](Json& j) { j["ssm_cfg"][key] = !usual; }), {kSteps});
  }
  const std::pair<const char*, Json> unusual[] = {{"norm_before_gate", true},
                                                  {"rmsnorm", false},
                                                  {"bias", true},
                                                  {"conv_bias", false},
                                                  {"ngroups", 2},
                                                  {"D_has_hdim", true},
                                                  {"d_ssm", 36},
                                                  {"d_conv", 3},
                                                  {"dt_limit", {0.01, 0.9}}};
  for (const auto& [key, value] : unusual) {
    SCOPED_TRACE(key);
    expect_whole(*model_with("mamba2",
                             [&, key = key, value = value](Json& j) {
                               j["ssm_cfg"] = {{"layer", "Mamba2"}, {"d_state", 5}, {"headdim", 6}};
                               j["ssm_cfg"][key] = value;
                             }),
                 {kSteps});
  }
}

// Each acts, on its own, and the norm of the Mamba part may be absent. The values themselves are the golden case's.
TEST(FalconH1, T10_EveryMultiplierActsAndTheNormIsOptional) {
  const Json original =
      read_json(std::filesystem::path(KRAIT_SOURCE_DIR) / "tests/family/falcon_h1.json");
  EXPECT_NE(original.at("mamba_d_ssm").get<int>() / original.at("mamba_n_heads").get<int>(),
            original.at("head_dim").get<int>());
  const std::vector<float> before = logits_with("falcon_h1", [](Json&) {});
  const auto expect_change = [&](const std::string& what, const std::function<void(Json&)>& f) {
    EXPECT_GT(largest_difference(before, logits_with("falcon_h1", f)), 1e-3 * deviation(before))
        << what;
  };
  int n = 0;
  for (const auto& [key, value] : original.items()) {
    if (key.find("multiplier") == std::string::npos) continue;
    for (size_t i = 0; i < (value.is_array() ? value.size() : 1); ++i, ++n)
      expect_change(key + " " + std::to_string(i), [&, key = key](Json& json) {
        Json& number = json[key].is_array() ? json[key][i] : json[key];
        number = 1.5 * number.get<double>();
      });
  }
  EXPECT_EQ(n, 7 + 5 + 2);
  expect_change("no norm", [](Json& json) { json["mamba_rms_norm"] = false; });
}

// Every adapter of the shared blocks changes what comes out and is given a gradient.
TEST(Zamba2, T35_AdaptersActAndLearn) {
  const Small small{"zamba2", std::filesystem::path(KRAIT_SOURCE_DIR) / "tests/family/zamba2.json"};
  const auto model = small_model(small, nn::Purpose::training);
  std::vector<int32_t> ids = random_tokens(kLength, 8);
  const Tensor tokens = as_tensor(ids, {1, kLength});
  gradients(*model, {}, 1, kLength);
  const std::vector<float> before = run(*model, tokens, {});
  int adapters = 0;
  for (nn::Param& p : model->params()) {
    if (p.name.find("adapter") == std::string::npos) continue;
    ++adapters;
    EXPECT_GT(testing::max_abs(testing::to_double(p.var.grad)), 1e-6) << p.name;
    const testing::Values v = testing::to_double(p.value);
    testing::Values moved = v;
    for (double& x : moved) x += 0.1;
    testing::set_values(p.value, moved);
    EXPECT_GT(largest_difference(before, run(*model, tokens, {})), 1e-4 * deviation(before))
        << p.name;
    testing::set_values(p.value, v);
  }
  EXPECT_EQ(adapters,
            2 * 2 * (3 + 1));  // two uses of one block: q, k, v and gate_up, each down and up
}

// Two halves joined by a state that is a variable have the gradients of the whole.
TEST_P(Training, GradientsFlowThroughTheStateBetweenTwoCalls) {
  if (GetParam().name == "moe_mamba")
    GTEST_SKIP()
        << "what its experts drop, and the cost of balance, depend on all tokens of a call";
  const auto model = small_model(GetParam(), nn::Purpose::training);
  constexpr int64_t L = 20;
  const Gradients whole = gradients(*model, {}, 1, L);
  std::vector<int32_t> ids = random_tokens(L, 6), targets = random_tokens(L, 7);
  targets[3] = -1;
  model->params().forget_gradients();
  Context c;
  c.device = testing::test_device();
  Arena arena(64 << 20, c.device);
  Tape tape;
  c.arena = &arena;
  c.tape = &tape;
  nn::State middle = state_of(*model, 1);
  const Tensor tokens = as_tensor(ids, {1, L}), goals = as_tensor(targets, {1, L});
  const auto part = [&](int64_t from, int64_t to, const Pass& pass) {
    const Tensor h = model->hidden(c, tokens.slice(1, from, to), pass);
    return to_vector(model->loss(c, h, goals.slice(1, from, to), 0.01f).loss)[0];
  };
  Pass first, second;
  first.state_out = &middle;
  second.state_in = &middle;
  const float loss = part(0, 9, first) + part(9, L, second);
  tape.backward(c);
  EXPECT_NEAR(loss, whole.loss, 1e-5f * whole.loss);
  std::vector<float> split;
  for (const nn::Param& p : model->params()) {
    const auto v = to_vector(p.var.grad);
    split.insert(split.end(), v.begin(), v.end());
  }
  double largest = 0;
  for (const float v : whole.values) largest = std::max(largest, std::abs(static_cast<double>(v)));
  EXPECT_LE(largest_difference(whole.values, split), 1e-5 * largest);
}

}  // namespace
}  // namespace krait::models
