// Types of states: those of scans kept in bfloat16 (SessionOptions::scan_state), for every architecture of tests/family that
// has one, and inputs of convolutions, which have the type of activations.
#include <gtest/gtest.h>

#include <filesystem>

#include "krait/infer/state_file.h"
#include "krait/models/architecture.h"
#include "krait/testing/files.h"
#include "krait/testing/small_model.h"

namespace krait {
namespace {

using namespace krait::testing;

constexpr size_t kPrompt = 20;
constexpr int64_t kRows = 3;

bool scans(const models::LanguageModel& model) {
  const auto& parts = model.state_parts();
  return std::any_of(parts.begin(), parts.end(), [](const nn::StatePart& p) { return p.scan; });
}

models::Config config_of(const std::filesystem::path& file) {
  const Json json = read_json(file);
  const JsonView view(json, file.string());
  const auto layout =
      view.has("model_type") ? models::Layout::huggingface : models::Layout::original;
  for (const models::Architecture* a : models::architectures())
    if (a->claims(view, layout)) return a->read(view, layout);
  fail("{}: no architecture claims it", file.string());
}

// Calls use(model, its name) for each model that predicts tokens and scans.
template <class Use>
void each_model(const Use& use) {
  int64_t seen = 0;
  for (const auto& file : std::filesystem::directory_iterator(
           std::filesystem::path(KRAIT_SOURCE_DIR) / "tests/family")) {
    const models::Config config = config_of(file.path());
    if (config.inputs > 0) continue;
    models::LanguageModel model(config);
    if (model.judges_sequences() || !scans(model)) continue;
    model.params().allocate(nn::Purpose::inference, DType::f32, false, test_device());
    model.params().initialize(7);
    use(model, file.path().stem().string());
    ++seen;
  }
  EXPECT_GE(seen, 4) << "Mamba-1, -2, -3 and S4 at the least";
}

Session session_of(const models::LanguageModel& model, DType scan_state,
                   DType activation = DType::f32) {
  SessionOptions o;
  o.activation = activation;
  o.batch = kRows;
  o.context = kPrompt + 1;
  o.scan_state = scan_state;
  return Session(model, o);
}

std::vector<Ids> prompts(const models::LanguageModel& model, size_t n, uint64_t seed) {
  std::vector<Ids> rows;
  for (uint64_t b = 0; b < kRows; ++b) {
    rows.push_back(random_ids(n, seed + b));
    for (int32_t& id : rows.back()) id %= static_cast<int32_t>(model.config().vocab_size);
  }
  return rows;
}

Ids step(Session& s, uint64_t seed) {
  Ids next;
  for (const Ids& row : prompts(s.model(), 1, seed)) next.push_back(row[0]);
  s.step(next);
  synchronize(s.context().device, s.context().stream);
  return next;
}

TEST(StateDtype, OnlyStatesOfScansAreNarrow) {
  each_model([](const models::LanguageModel& model, const std::string& name) {
    const nn::State state = model.make_state(2, 5, {DType::f32, DType::bf16});
    for (size_t i = 0; i < state.parts().size(); ++i)
      EXPECT_EQ(state.tensor(i).dtype, state.parts()[i].scan ? DType::bf16 : DType::f32)
          << name << " " << state.parts()[i].name;
  });
}

// Arithmetic is float32: a step from rounded states gives the numbers of one from float32 states of the same
// values, and what it leaves are those of that one, rounded.
TEST(StateDtype, AStepRoundsWhatItLeavesAndNothingElse) {
  each_model([](const models::LanguageModel& model, const std::string& name) {
    Session narrow = session_of(model, DType::bf16), wide = session_of(model, DType::f32);
    read(narrow, prompts(model, kPrompt, 1));
    read(wide, prompts(model, kPrompt, 1));
    expect_same_bits(to_double(narrow.logits()), to_double(wide.logits()), name + " prompt");
    for (int64_t b = 0; b < kRows; ++b) wide.restore(b, narrow.snapshot(b));
    for (uint64_t t = 0; t < 3; ++t) {
      step(narrow, 50 + t);
      step(wide, 50 + t);
      const Values got = to_double(narrow.logits()), expected = to_double(wide.logits());
      double largest = 0;
      for (const double x : expected) largest = std::max(largest, std::abs(x));
      EXPECT_LE(max_abs_error(got, expected), 1e-5 * largest) << name << " step " << t;
      for (int64_t b = 0; b < kRows; ++b) {
        const Snapshot left = narrow.snapshot(b), exact = wide.snapshot(b);
        for (size_t i = 0; i < left.state.parts().size(); ++i) {
          const nn::StatePart& part = left.state.parts()[i];
          if (part.per_token) continue;
          const Values x = to_double(left.state.tensor(i)), y = to_double(exact.state.tensor(i));
          // Half a unit in the last of 8 bits, and float32's error.
          const double unit = part.scan ? 0x1p-8 : 1e-5;
          for (size_t k = 0; k < x.size(); ++k)
            ASSERT_NEAR(x[k], y[k], unit * std::abs(y[k]) + 1e-5) << name << " " << part.name;
        }
        wide.restore(b, left);
      }
    }
  });
}

TEST(StateDtype, StateFilesCarryThemUnchanged) {
  each_model([](const models::LanguageModel& model, const std::string& name) {
    Session s = session_of(model, DType::bf16), again = session_of(model, DType::bf16);
    read(s, prompts(model, kPrompt, 1));
    std::vector<Snapshot> rows;
    for (int64_t b = 0; b < kRows; ++b) rows.push_back(s.snapshot(b));
    const TempDir folder;
    save_state(folder / "state.safetensors", rows, "hash");
    const std::vector<Snapshot> loaded = load_state(folder / "state.safetensors", model, "hash");
    for (int64_t b = 0; b < kRows; ++b) again.restore(b, loaded[static_cast<size_t>(b)]);
    step(s, 50);
    step(again, 50);
    expect_same_bits(to_double(s.logits()), to_double(again.logits()), name);
  });
}

// Numbers of the convolutions' states of a row, and whether all of them are bfloat16's.
std::pair<Values, bool> of_convolutions(const nn::State& state) {
  Values all;
  for (size_t i = 0; i < state.parts().size(); ++i) {
    if (!state.parts()[i].name.ends_with(".conv")) continue;
    const Values v = to_double(state.tensor(i));
    all.insert(all.end(), v.begin(), v.end());
  }
  const bool narrow = std::all_of(all.begin(), all.end(), [](double x) {
    return static_cast<double>(static_cast<float>(bf16(static_cast<float>(x)))) == x;
  });
  return {all, narrow};
}

// Saved by a session of one type, gone on from by one of another: in float32 from the very inputs that a bfloat16 run
// left, in bfloat16 from those of a float32 run, each rounded once.
TEST(StateDtype, T31_StatesOfConvolutionsGoOnInAnotherType) {
  int64_t convolve = 0;
  each_model([&](const models::LanguageModel& model, const std::string& name) {
    if (of_convolutions(model.make_state(1)).first.empty()) return;
    ++convolve;
    const TempDir folder;
    const auto saved = [&](const Session& s, const char* file) {
      std::vector<Snapshot> rows;
      for (int64_t b = 0; b < kRows; ++b) rows.push_back(s.snapshot(b));
      save_state(folder / file, rows, "hash");
      return load_state(folder / file, model, "hash");
    };
    for (const DType from : {DType::f32, DType::bf16}) {
      const DType to = from == DType::f32 ? DType::bf16 : DType::f32;
      Session first = session_of(model, DType::f32, from),
              second = session_of(model, DType::f32, to);
      read(first, prompts(model, kPrompt, 1));
      const std::vector<Snapshot> rows = saved(first, "first");
      for (int64_t b = 0; b < kRows; ++b) {
        const auto row = static_cast<size_t>(b);
        const auto [left, narrow] = of_convolutions(rows[row].state);
        EXPECT_EQ(narrow, from == DType::bf16) << name;
        second.restore(b, rows[row]);
        Values rounded = left;
        for (double& x : rounded) x = static_cast<float>(bf16(static_cast<float>(x)));
        expect_same_bits(of_convolutions(second.snapshot(b).state).first, rounded, name);
      }
      // Back in the type that it came from the file goes on as if nothing had been saved.
      Session again = session_of(model, DType::f32, from);
      for (int64_t b = 0; b < kRows; ++b) again.restore(b, rows[static_cast<size_t>(b)]);
      for (Session* s : {&first, &second, &again}) step(*s, 50);
      expect_same_bits(to_double(again.logits()), to_double(first.logits()), name);
      for (const double x : to_double(second.logits())) ASSERT_TRUE(std::isfinite(x)) << name;
    }
  });
  EXPECT_GE(convolve, 2) << "Mamba-1 and Mamba-2 at the least";
}

}  // namespace
}  // namespace krait
