// Models of sizes that ops::mamba1_step has kernels for, or mamba1_stack and mamba2_stack: tokens read one by one, the
// third and later ones from a recorded graph on a GPU, give what a pass over all of them gives.
#include <gtest/gtest.h>

#include "krait/models/mamba2.h"
#include "krait/testing/small_model.h"

namespace krait {
namespace {

using namespace krait::testing;

constexpr size_t kPrompt = 4, kTokens = 20;

std::unique_ptr<models::LanguageModel> drawn(const models::Config& config, DType type) {
  auto model = std::make_unique<models::LanguageModel>(config);
  model->params().allocate(nn::Purpose::inference, type, false, test_device());
  model->params().initialize(7);
  uint64_t stream = 100;
  for (nn::Param& p : model->params()) {
    const Philox rng{11, ++stream};
    Values v = to_double(p.value);
    for (size_t i = 0; i < v.size(); ++i) v[i] += 0.05 * rng.normal(i);
    set_values(p.value, v);
  }
  return model;
}

std::unique_ptr<models::LanguageModel> model_of(DType type) {
  const models::Config config = models::mamba_config(64, 3, kSmallVocab, 8);
  nn::Mamba1Config mixer = models::mamba1_of(config);
  mixer.dt_rank = 8;
  return drawn(models::with_mamba1(config, mixer), type);
}

// Logits behind the last token of each row; all but the first `stepped` tokens from the end in one pass.
Values logits(const models::LanguageModel& model, DType type, int64_t batch, size_t stepped) {
  SessionOptions o;
  o.batch = batch;
  o.activation = type;
  Session s(model, o);
  std::vector<Ids> rows;
  for (int64_t b = 0; b < batch; ++b)
    rows.push_back(random_ids(kPrompt + kTokens, static_cast<uint64_t>(b) + 1));
  std::vector<Ids> prompts = rows;
  for (Ids& p : prompts) p.resize(kPrompt + kTokens - stepped);
  read(s, prompts);
  for (size_t t = kPrompt + kTokens - stepped; t < kPrompt + kTokens; ++t) {
    Ids next;
    for (const Ids& row : rows) next.push_back(row[t]);
    s.step(next);
  }
  synchronize(s.context().device, s.context().stream);
  return to_double(s.logits());
}

double deviation(const Values& v) {
  double sum = 0, square = 0;
  for (const double x : v) sum += x, square += x * x;
  const auto n = static_cast<double>(v.size());
  return std::sqrt(square / n - sum / n * (sum / n));
}

// One, some, and more rows than are normed on their way into a product, or than the kernels take.
constexpr int64_t kBatches[] = {1, 3, 9, 17, 40, 130};

TEST(FusedStep, InFloat32IsAPass) {
  const auto model = model_of(DType::f32);
  for (const int64_t B : kBatches) {
    const Values whole = logits(*model, DType::f32, B, 0);
    const double error = max_abs_error(logits(*model, DType::f32, B, kTokens), whole);
    EXPECT_LE(error, 1e-5 * deviation(whole)) << B << " rows";
  }
}

TEST(FusedStep, InBfloat16IsAsNearToFloat32AsAPass) {
  const auto model = model_of(DType::bf16);
  for (const int64_t B : kBatches) {
    const Values exact = logits(*model, DType::f32, B, 0);
    const double whole = max_abs_error(logits(*model, DType::bf16, B, 0), exact);
    const double stepped = max_abs_error(logits(*model, DType::bf16, B, kTokens), exact);
    EXPECT_LE(stepped, 2 * whole) << B << " rows";
    EXPECT_GT(whole, 0);
  }
}

// Of a width whose layers are one kernel on GPUs of compute capability 9.0.
std::vector<models::Config> stacked() {
  return {models::mamba_config(1024, 2, kSmallVocab, 8),
          models::mamba2_config(1024, 2, kSmallVocab, 16)};
}

TEST(StackedStep, IsAsNearToFloat32AsAPass) {
  for (const models::Config& config : stacked()) {
    const auto model = drawn(config, DType::bf16);
    const Values exact = logits(*model, DType::f32, 1, 0);
    const double whole = max_abs_error(logits(*model, DType::bf16, 1, 0), exact);
    EXPECT_LE(max_abs_error(logits(*model, DType::bf16, 1, kTokens), exact), 2 * whole);
    EXPECT_GT(whole, 0);
  }
}

TEST(StackedStep, SameBitsRecordedRewoundAndForked) {
  for (const models::Config& config : stacked()) {
    const auto model = drawn(config, DType::bf16);
    SessionOptions o;
    o.activation = DType::bf16;
    Session s(*model, o), fork(*model, o);
    read(s, {random_ids(kPrompt, 1)});
    const Snapshot start = s.snapshot(0);
    const auto from_start = [&](Session& of) {
      of.restore(0, start);
      for (const int32_t id : random_ids(kTokens, 2)) of.step({&id, 1});
      return to_double(of.logits());
    };
    const Values first = from_start(s);  // two tokens launched, then a graph
    expect_same_bits(first, from_start(s), "rewound");
    expect_same_bits(first, from_start(fork), "forked");
  }
}

TEST(FusedStep, TwiceTheSameBits) {
  for (const DType type : {DType::f32, DType::bf16}) {
    const auto model = model_of(type);
    for (const int64_t B : kBatches)
      expect_same_bits(logits(*model, type, B, kTokens), logits(*model, type, B, kTokens),
                       fmt::format("{} rows in {}", B, name_of(type)));
  }
}

}  // namespace
}  // namespace krait
