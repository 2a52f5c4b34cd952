#include "krait/train/trainer.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "krait/base/threads.h"
#include "krait/io/any_model.h"
#include "krait/io/model.h"
#include "krait/io/safetensors.h"
#include "krait/testing/files.h"
#include "krait/train/fixture.h"

namespace krait {
namespace {

using testing::byte_stream;
using testing::error_of;
using testing::nursery_text;
using testing::small_model;
using testing::small_options;
using testing::weights;

// Steps this small are faster with one thread.
class OneThread : public ::testing::Environment {
  void SetUp() override { set_threads(1); }
};
[[maybe_unused]] const auto* const one_thread = ::testing::AddGlobalTestEnvironment(new OneThread);

struct Trace {
  std::vector<double> losses, norms;
  std::vector<float> weights;
};

Trace train(const TokenStream& data, const TrainOptions& o, int64_t steps) {
  const auto model = small_model(o.seed, o.dtype);
  Trainer trainer(*model, data, o);
  Trace t;
  for (int64_t s = 0; s < steps; ++s) {
    const StepResult r = trainer.step();
    t.losses.push_back(r.loss);
    t.norms.push_back(r.grad_norm);
  }
  t.weights = weights(*model);
  return t;
}

TEST(Trainer, LearnsText) {
  const TokenStream data = byte_stream({nursery_text(200)});
  TrainOptions o = small_options();
  o.steps = 60;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    o.dtype = dtype;
    const Trace t = train(data, o, 60);
    EXPECT_NEAR(t.losses.front(), std::log(256.0), 0.3);  // it starts with no idea
    EXPECT_LT(t.losses.back(), 2.0) << name_of(dtype);
  }
}

TEST(Trainer, TheStartIsNearTheEntropyOfChance) {
  const TokenStream data = byte_stream({nursery_text(20)});
  const auto model = small_model();
  Trainer trainer(*model, data, small_options());
  EXPECT_NEAR(*trainer.validate(data), std::log(256.0), 0.3);
}

// Each of the ways to run that promises the same numbers, against the plain one.
TEST(Trainer, RecomputingMoreOrLessChangesNothing) {
  const TokenStream data = byte_stream({nursery_text(50)});
  TrainOptions o = small_options();
  o.dropout = 0.1f;
  const Trace plain = train(data, o, 5);
  for (const Recompute r : {Recompute::none, Recompute::layer}) {
    o.recompute = r;
    const Trace again = train(data, o, 5);
    EXPECT_EQ(plain.losses, again.losses) << to_string(r);
    EXPECT_EQ(plain.weights, again.weights) << to_string(r);
  }
}

TEST(Trainer, TheNumberOfThreadsChangesNothing) {
  const TokenStream data = byte_stream({nursery_text(50)});
  TrainOptions o = small_options();
  o.dropout = 0.1f;
  const int before = threads();
  set_threads(1);
  const Trace one = train(data, o, 4);
  set_threads(3);
  const Trace three = train(data, o, 4);
  set_threads(before);
  EXPECT_EQ(one.losses, three.losses);
  EXPECT_EQ(one.weights, three.weights);
}

TEST(Trainer, AccumulatedGradientsAreThoseOfTheLargeBatch) {
  const TokenStream data = byte_stream({nursery_text(50)});
  TrainOptions o = small_options();
  o.order = Order::sequential;
  o.batch_size = 4;
  const Trace whole = train(data, o, 4);
  o.batch_size = 1;
  o.grad_accum = 4;
  const Trace parts = train(data, o, 4);
  for (size_t s = 0; s < 4; ++s) {
    EXPECT_NEAR(parts.losses[s], whole.losses[s], 2e-5) << s;
    EXPECT_NEAR(parts.norms[s] / whole.norms[s], 1.0, 2e-4) << s;
  }
}

// Of experts a batch twice over is that batch once: losses of balance are means over micro-batches, too.
TEST(Trainer, T30_BalanceOfExpertsCountsOnceOverMicroBatches) {
  std::string text;
  for (int i = 0; i < 12; ++i) text += nursery_text(4).substr(0, 64);  // a batch
  const TokenStream data = byte_stream({text + "l"});
  TrainOptions o = small_options();
  o.order = Order::sequential;
  o.batch_size = 2;
  const auto first_step = [&] {
    Layout layout;
    models::LanguageModel model(parse_config(
        R"({"model_type": "blocks", "hidden_size": 24, "num_hidden_layers": 2, "vocab_size": 256,
            "layers": ["mamba+experts"], "mamba": {"d_state": 4},
            "experts": {"n_experts": 4, "d_inner": 16, "capacity_factor": 2.0, "balance": 0.5}})",
        "config.json", layout));
    model.params().allocate(nn::Purpose::training, DType::f32, false, testing::test_device());
    model.params().initialize(1);
    return Trainer(model, data, o).step();
  };
  const StepResult once = first_step();
  o.grad_accum = 3;
  const StepResult thrice = first_step();
  EXPECT_NEAR(thrice.loss, once.loss, 1e-5);
  EXPECT_NEAR(thrice.grad_norm / once.grad_norm, 1.0, 1e-5);
}

// Documents of exactly one window, packed, are the same windows without borders, but for the last
// target, which the packed run does not predict.
TEST(Trainer, T25_PackedDocumentsTrainAsTheDocumentsAlone) {
  const std::string text = nursery_text(40);
  std::vector<std::string> pieces, halves;
  for (size_t i = 0; i + 16 <= 512; i += 16) pieces.push_back(text.substr(i, 16));
  TrainOptions o = small_options();
  o.order = Order::sequential;
  o.batch_size = 2;
  o.seq_len = 32;  // two documents in a row
  const TokenStream packed = byte_stream(pieces);
  const auto model = small_model();
  Trainer together(*model, packed, o);
  const StepResult r = together.step();

  // The same four documents, one a row.
  o.batch_size = 4;
  o.seq_len = 16;
  const auto other = small_model();
  Trainer alone(*other, packed, o);
  const StepResult s = alone.step();
  EXPECT_NEAR(r.loss, s.loss, 1e-5);
  EXPECT_NEAR(r.grad_norm / s.grad_norm, 1.0, 1e-4);
}

// With states carried, row after row of one stream is one long sequence.
TEST(Trainer, CarriedStatesGiveTheLossOfTheWholeSequence) {
  const TokenStream data = byte_stream({nursery_text(10)});
  TrainOptions o = small_options();
  o.order = Order::sequential;
  o.carry_state = true;
  o.batch_size = 1;
  o.seq_len = 32;
  o.lr = 0;  // the weights stay
  const auto model = small_model();
  Trainer carried(*model, data, o);
  double sum = 0;
  for (int s = 0; s < 6; ++s) sum += carried.step().loss;
  o.carry_state = false;
  o.seq_len = 192;
  Trainer whole(*model, data, o);
  EXPECT_NEAR(sum / 6, whole.step().loss, 1e-5);
}

// On a GPU attention takes other kernels, and more memory, where no cache comes in: in the first step.
TEST(Trainer, CarriedStatesStartFromNothingInThePlannedMemory) {
  models::LanguageModel model(std::get<models::Config>(
      read_any_config(std::string(KRAIT_SOURCE_DIR) + "/tests/family/mistral.json")));
  TrainOptions o = small_options();
  o.dtype = DType::bf16;
  o.order = Order::sequential;
  o.carry_state = true;
  model.params().allocate(nn::Purpose::training, o.dtype, false, o.device);
  model.params().initialize(1);
  const TokenStream data = byte_stream({nursery_text(30)});
  Trainer trainer(model, data, o);
  for (int s = 0; s < 3; ++s) EXPECT_GT(trainer.step().loss, 0);
}

TEST(Trainer, ValidationIsTheLossOfEachDocumentAsOneSequence) {
  const std::vector<std::string> documents = {nursery_text(3), "x", nursery_text(2), "short."};
  const auto model = small_model();
  TrainOptions o = small_options();
  o.batch_size = 1;
  o.seq_len = 64;  // shorter than the documents: passes of 64 tokens with the state carried
  const TokenStream all = byte_stream(documents);
  Trainer trainer(*model, all, o);
  double nll = 0;
  for (const std::string& d : documents) {
    if (d.size() < 2) continue;
    const TokenStream alone = byte_stream({d});
    o.seq_len = static_cast<int64_t>(d.size()) - 1;
    o.order = Order::sequential;
    o.lr = 0;
    Trainer one(*model, alone, o);
    nll += one.step().loss * static_cast<double>(d.size() - 1);
  }
  EXPECT_NEAR(*trainer.validate(all), nll / static_cast<double>(all.targets()), 2e-6);
  EXPECT_FALSE(trainer.validate(all, [] { return true; }).has_value());
}

TEST(Trainer, TheArenaIsAsLargeAsThePlanAndNoLarger) {
  const TokenStream data = byte_stream({nursery_text(20)});
  for (const Recompute recompute : {Recompute::none, Recompute::cheap, Recompute::layer}) {
    TrainOptions o = small_options();
    o.recompute = recompute;
    o.carry_state = true;
    o.order = Order::sequential;
    o.grad_accum = 2;
    const auto model = small_model();
    Trainer trainer(*model, data, o);
    trainer.step();
    EXPECT_EQ(trainer.arena().peak(), trainer.arena().capacity());
  }
}

// Gradients that live in the step's memory are laid over what the layers kept, which backward gives back.
TEST(Trainer, GradientsOfOneBatchTakeNoMoreMemoryThanTheActivations) {
  const TokenStream data = byte_stream({nursery_text(60)});
  const auto run = [&](nn::Purpose purpose, Recompute recompute) {
    const auto model = small_model(1, DType::f32, purpose);
    TrainOptions o = small_options();
    o.recompute = recompute;
    Trainer trainer(*model, data, o);
    for (int s = 0; s < 3; ++s) trainer.step();
    EXPECT_EQ(trainer.arena().peak(), trainer.arena().capacity());
    return std::pair(weights(*model),
                     model->params().allocated_bytes() + trainer.arena().capacity());
  };
  for (const Recompute recompute : {Recompute::none, Recompute::cheap, Recompute::layer}) {
    const auto [own, own_bytes] = run(nn::Purpose::training, recompute);
    const auto [lent, lent_bytes] = run(nn::Purpose::training_by_batch, recompute);
    EXPECT_EQ(own, lent);
    EXPECT_LT(lent_bytes, own_bytes);
  }
  TrainOptions two = small_options();
  two.grad_accum = 2;
  const auto model = small_model(1, DType::f32, nn::Purpose::training_by_batch);
  EXPECT_EQ(error_of([&] { Trainer(*model, data, two); }),
            "[trainer] the model has no memory to add up the gradients of 2 batches");
}

// Of Mamba-1 a layer keeps the stream, what in_proj and x_proj made, the scan's result and every 64th of its states; or
// all: also the norm's result and scale, the convolution's and Δ.
TEST(Trainer, ALayerKeepsWhatIsDearToComputeAgain) {
  TrainOptions o;
  o.batch_size = 8;
  o.seq_len = 1024;  // the stream is larger than the gradients of a layer's parameters
  const auto step = [&](int64_t layers, Recompute recompute) {
    models::Config config = models::preset("mamba-130m");
    config.n_layer = layers;
    models::LanguageModel model(config);
    o.recompute = recompute;
    return plan_training(model, o).step;
  };
  constexpr size_t tokens = 8 * 1024, D = 768, E = 2 * D, R = D / 16, N = 16,
                   a_token = D + 2 * E + R + 2 * N + E + E * N / 64;
  const auto of_two_layers = [&](Recompute r) { return step(4, r) - step(2, r); };
  EXPECT_EQ(of_two_layers(Recompute::cheap), 2 * tokens * a_token * sizeof(float));
  EXPECT_EQ(of_two_layers(Recompute::none), 2 * tokens * (a_token + D + 1 + 2 * E) * sizeof(float));
  EXPECT_EQ(of_two_layers(Recompute::layer), 2 * tokens * D * sizeof(float));
}

std::unique_ptr<models::LanguageModel> s4_model(const std::string& more, Device device) {
  Layout layout;
  auto model = std::make_unique<models::LanguageModel>(parse_config(
      R"({"model_type": "s4", "hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 256,
          "state_size": 8, )" +
          more + "}",
      "config", layout));
  model->params().allocate(nn::Purpose::training, DType::f32, false, device);
  model->params().initialize(1);
  return model;
}

// The steps of a recurrence are made from the parameters on the host, anew in each training step.
TEST(Trainer, StatesOfS4AreCarriedOnEveryDeviceAlike) {
  const TokenStream data = byte_stream({nursery_text(20)});
  for (const char* mode : {R"("mode": "dplr", "l_kernel": 40)", R"("mode": "s4d")"}) {
    const auto losses = [&](Device device) {
      const auto model = s4_model(mode, device);
      TrainOptions o = small_options();
      o.device = device;
      o.order = Order::sequential;
      o.carry_state = true;
      Trainer trainer(*model, data, o);
      std::vector<double> all;
      for (int s = 0; s < 6; ++s) all.push_back(trainer.step().loss);
      return all;
    };
    const std::vector<double> host = losses({}), here = losses(testing::test_device());
    for (size_t s = 0; s < host.size(); ++s)
      EXPECT_NEAR(here[s], host[s], 2e-5) << mode << " " << s;
    EXPECT_LT(host.back(), host.front());
  }
}

// What a batch norm has seen moves once a step, however often a layer is run for it; and it is saved.
TEST(Trainer, BatchNormsSeeABatchOnceWhetherLayersAreRecomputedOrNot) {
  const TokenStream data = byte_stream({nursery_text(20)});
  const auto trained = [&](Recompute recompute) {
    auto model = s4_model(R"("norm": "batch")", testing::test_device());
    TrainOptions o = small_options();
    o.recompute = recompute;
    Trainer trainer(*model, data, o);
    for (int s = 0; s < 3; ++s) trainer.step();
    return model;
  };
  const auto kept = trained(Recompute::none);
  for (const Recompute r : {Recompute::cheap, Recompute::layer})
    EXPECT_EQ(weights(*kept), weights(*trained(r))) << to_string(r);
  const nn::Param* mean = kept->params().find("backbone.layers.0.norm.running_mean");
  ASSERT_NE(mean, nullptr);
  EXPECT_GT(testing::max_abs(testing::to_double(mean->value)), 1e-4);
  const testing::TempDir dir;
  save_model(*kept, dir.path(), Layout::huggingface, DType::f32);
  const LoadedModel loaded =
      load_model(dir.path(), {nn::Purpose::training, DType::f32, testing::test_device()});
  EXPECT_EQ(weights(*loaded.model), weights(*kept));
}

// A GPU gives memory out again as it was left.
TEST(Trainer, MomentsStartFromZeroInMemoryThatWasUsed) {
  {
    const auto model = small_model();
    for (const nn::Param& p : model->params())
      for (const Tensor& t : {p.m, p.v, p.var.grad, p.value})
        testing::set_values(t, testing::Values(static_cast<size_t>(t.numel()), std::nan("")));
  }
  const auto model = small_model();
  for (const nn::Param& p : model->params())
    for (const Tensor& t : {p.m, p.v})
      EXPECT_EQ(testing::to_double(t), testing::Values(static_cast<size_t>(t.numel()))) << p.name;
}

TEST(Trainer, T1_T3_OnlyMatricesButNotALogAreDecayed) {
  const auto model = small_model();
  for (const nn::Param& p : model->params()) {
    const bool matrix = p.shape.rank >= 2 && p.name.find("A_log") == std::string::npos;
    EXPECT_EQ(p.decay, matrix) << p.name;
  }
  // With bfloat16 weights the ones that must stay float32 do.
  const auto half = small_model(1, DType::bf16);
  for (const nn::Param& p : half->params()) {
    const bool narrow = p.shape.rank >= 2 && p.name.find("A_log") == std::string::npos &&
                        p.name.find("conv1d") == std::string::npos;
    EXPECT_EQ(p.value.dtype, narrow ? DType::bf16 : DType::f32) << p.name;
  }
}

TEST(Trainer, OneTokenSequencesTrain) {
  const TokenStream data = byte_stream({nursery_text(2)});
  TrainOptions o = small_options();
  o.seq_len = 1;
  EXPECT_TRUE(std::isfinite(train(data, o, 2).losses.back()));
}

// The same for a run that goes on from files and one that never stopped.
void expect_resumable(const TokenStream& data, const TrainOptions& o) {
  const Trace whole = train(data, o, 10);
  const testing::TempDir folder;
  {
    const auto model = small_model(o.seed, o.dtype);
    Trainer first(*model, data, o);
    for (int s = 0; s < 5; ++s) EXPECT_EQ(first.step().loss, whole.losses[static_cast<size_t>(s)]);
    save_model(*model, folder.path(), Layout::huggingface, DType::f32);
    first.save(folder.path());
  }
  const LoadedModel loaded = load_model(folder.path(), {nn::Purpose::training, o.dtype, o.device});
  Trainer second(*loaded.model, data, o);
  second.load(folder.path());
  EXPECT_EQ(second.steps_done(), 5);
  for (int s = 5; s < 10; ++s) {
    const StepResult r = second.step();
    EXPECT_EQ(r.loss, whole.losses[static_cast<size_t>(s)]) << s;
    EXPECT_EQ(r.grad_norm, whole.norms[static_cast<size_t>(s)]) << s;
  }
  EXPECT_EQ(weights(*loaded.model), whole.weights);
}

TEST(TrainerResume, BitForBitWithDropoutShuffleAndAccumulation) {
  const TokenStream data = byte_stream({nursery_text(30)});  // the ten steps cross epochs
  TrainOptions o = small_options();
  o.dropout = 0.2f;
  o.grad_accum = 2;
  o.schedule = Schedule::cosine;
  o.warmup = 3;
  expect_resumable(data, o);
  o.dtype = DType::bf16;
  expect_resumable(data, o);
}

TEST(TrainerResume, BitForBitWithCarriedStatesAndDocuments) {
  const TokenStream data = byte_stream({nursery_text(12), "hm", nursery_text(1), nursery_text(20)});
  TrainOptions o = small_options();
  o.order = Order::sequential;
  o.carry_state = true;
  o.grad_accum = 3;
  expect_resumable(data, o);
}

// Weights half way between two of bfloat16 are the ones whose other half has its last bit in v.
TEST(TrainerResume, FilesHaveWholeWeightsAndMomentsWithoutSigns) {
  const TokenStream data = byte_stream({nursery_text(10)});
  TrainOptions o = small_options();
  o.dtype = DType::bf16;
  o.lr = 0;  // they stay as they are
  const auto model = small_model(1, o.dtype);
  for (nn::Param& p : model->params()) {
    std::vector<std::byte> buffer;
    const std::vector<float> numbers = testing::to_float(nn::read_numbers(p, buffer));
    std::vector<float> ties = numbers;
    for (float& x : ties)
      x = std::bit_cast<float>((std::bit_cast<uint32_t>(x) & 0xffff0000u) | 0x8000u);
    if (p.low)
      nn::write_numbers(
          p, [&](const Tensor& to) { store(Tensor(ties.data(), DType::f32, p.shape), to); });
    EXPECT_EQ(testing::to_float(nn::read_numbers(p, buffer)), p.low ? ties : numbers) << p.name;
  }
  const std::vector<float> before = weights(*model);
  const testing::TempDir folder;
  Trainer first(*model, data, o);
  first.step();
  EXPECT_EQ(weights(*model), before);
  save_model(*model, folder.path(), Layout::huggingface, DType::f32);
  first.save(folder.path());
  for (const NamedTensor& t : read_safetensors(folder.path() / "trainer.safetensors"))
    for (const float x : testing::to_float(t.view))
      ASSERT_FALSE(t.name.starts_with("v.") && std::signbit(x)) << t.name;
  const LoadedModel loaded = load_model(folder.path(), {nn::Purpose::training, o.dtype, o.device});
  Trainer second(*loaded.model, data, o);
  second.load(folder.path());
  EXPECT_EQ(weights(*loaded.model), before);
  EXPECT_EQ(second.step().loss, first.step().loss);
  EXPECT_EQ(weights(*loaded.model), before);
}

TEST(TrainerResume, AnotherRunIsRefused) {
  const TokenStream data = byte_stream({nursery_text(10)});
  const testing::TempDir folder;
  const auto model = small_model();
  TrainOptions o = small_options();
  Trainer first(*model, data, o);
  first.step();
  first.save(folder.path());
  o.seq_len = 16;
  Trainer other(*model, data, o);
  const std::string message = error_of([&] { other.load(folder.path()); });
  EXPECT_NE(message.find("seq-len 32"), std::string::npos) << message;
  EXPECT_NE(message.find("seq-len 16"), std::string::npos) << message;
  const TokenStream longer = byte_stream({nursery_text(11)});
  Trainer third(*model, longer, small_options());
  EXPECT_NE(error_of([&] { third.load(folder.path()); }), "");
}

TEST(Trainer, T33_NotFiniteStopsWithStepLayerAndTensorAndChangesNoWeight) {
  const TokenStream data = byte_stream({nursery_text(10)});
  const auto model = small_model();
  Trainer trainer(*model, data, small_options());
  trainer.step();
  nn::Param* p = model->params().find("backbone.layers.1.mixer.D");
  ASSERT_TRUE(p);
  const testing::Values good = testing::to_double(p->value);
  testing::Values bad = good;
  bad[3] = std::numeric_limits<double>::quiet_NaN();
  testing::set_values(p->value, bad);
  const nn::Param* head = model->params().find("backbone.embeddings.weight");
  const std::vector<float> embedding = testing::to_float(head->value);
  const std::string message = error_of([&] { trainer.step(); });
  for (const char* part : {"step 2", "layer 1", "backbone.layers.1.mixer.D"})
    EXPECT_NE(message.find(part), std::string::npos) << message;
  EXPECT_EQ(testing::to_float(head->value), embedding);
  EXPECT_EQ(trainer.steps_done(), 1);
  testing::set_values(p->value, good);
  EXPECT_TRUE(std::isfinite(trainer.step().loss));
}

// y is near the largest number and multiplied by 0: the loss does not see it, out_proj's gradient does.
TEST(Trainer, T33_AGradientThatIsNotFiniteStopsThoughTheLossIsFinite) {
  const TokenStream data = byte_stream({nursery_text(10)});
  const auto model = small_model();
  Trainer trainer(*model, data, small_options());
  const auto fill = [&](const char* name, double value) {
    const Tensor& t = model->params().find(name)->value;
    testing::set_values(t, testing::Values(static_cast<size_t>(t.numel()), value));
  };
  fill("backbone.layers.1.mixer.D", 1e37);
  fill("backbone.layers.1.mixer.out_proj.weight", 0);
  fill("backbone.norm_f.weight", 1e7);
  const std::vector<float> before = testing::weights(*model);
  const std::string message = error_of([&] { trainer.step(); });
  EXPECT_NE(message.find("layer 1, backbone.layers.1.mixer.out_proj.weight"), std::string::npos)
      << message;
  EXPECT_EQ(message.find("loss nan"), std::string::npos) << message;
  EXPECT_EQ(message.find("loss inf"), std::string::npos) << message;
  EXPECT_TRUE(testing::weights(*model) == before);
  EXPECT_EQ(trainer.steps_done(), 0);
}

TEST(Trainer, ParametersTakeTwelveBytesInEitherType) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    models::LanguageModel sketch(models::preset("mamba-130m"));
    TrainOptions o;
    o.dtype = dtype;
    const auto numel = static_cast<double>(sketch.params().numel());
    EXPECT_NEAR(static_cast<double>(plan_training(sketch, o).parameters), 12 * numel, 1e6);
  }
}

TEST(Trainer, ABatchLargerThanTheMachineIsRefusedWithNumbers) {
  models::LanguageModel sketch(models::preset("mamba-2.8b"));
  TrainOptions o;
  o.batch_size = 4096;
  o.seq_len = 65536;
  const TrainingMemory m = plan_training(sketch, o);
  EXPECT_GT(m.step, size_t{1} << 42);
  EXPECT_NEAR(static_cast<double>(m.parameters), 2.77e9 * 12, 2e9);
  const std::string message = error_of([&] { require_memory(m, o); });
  EXPECT_NE(message.find("4096 sequences of 65536 tokens"), std::string::npos) << message;
}

}  // namespace
}  // namespace krait
