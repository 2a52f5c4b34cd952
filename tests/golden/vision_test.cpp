// Vision models against foreign implementations: logits, loss, gradients, and ten training steps by the rule
// of train.json.
#include <cmath>

#include "cases.h"
#include "krait/base/file.h"
#include "krait/io/torch_archive.h"
#include "krait/io/vision.h"
#include "krait/ops/adamw/adamw.h"
#include "krait/testing/op_test.h"
#include "krait/testing/planned_run.h"

namespace krait {
namespace {

using testing::GoldenCase;
using testing::Values;

std::vector<std::filesystem::path> vision_cases() {
  std::vector<std::filesystem::path> found;
  for (const std::filesystem::path& folder : testing::model_cases())
    if (!folder.empty() && read_json(folder / "case.json").at("system") == "vim")
      found.push_back(folder);
  return found;
}

// One pass over images [begin, begin + B), backward included where there is a tape; what comes out is
// in memory of its own.
struct VisionPass {
  Values logits;
  double loss = 0;

  VisionPass(models::VisionMamba& model, const Tensor& images, const Tensor& labels, bool recording,
             Recompute recompute = Recompute::cheap) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < labels.numel(); ++i)
      ids.push_back(static_cast<int32_t>(get(labels, i)));
    const Tensor inputs = testing::on_test_device(images.detach()),
                 targets =
                     testing::on_test_device(Tensor(ids.data(), DType::i32, {labels.numel()}));
    const testing::PlannedRun run(model.params().device(), recording, [&](Context& c) {
      model.params().forget_gradients();
      models::Pass pass;
      pass.recompute = recompute;
      const Tensor y = model.outputs(c, {.values = inputs}, pass);
      const Tensor sum =
          ops::cross_entropy(c, y, targets, 1.0f / static_cast<float>(labels.numel())).loss;
      if (!c.planning()) {  // backward runs the layers again where these lie
        logits = testing::to_double(y);
        loss = testing::to_double(sum)[0];
      }
      if (recording) c.tape->backward(c);
    });
  }
};

// A checkpoint does not say how large its images are, the case does.
LoadedVision load(const GoldenCase& g, const std::filesystem::path& file, nn::Purpose purpose,
                  bool average = false) {
  const Json& options = g.json.at("options");
  return load_vision_model(
      file, {purpose, DType::f32, testing::test_device()}, average,
      {options.at("img_size").get<int64_t>(), options.at("stride").get<int64_t>()});
}

bool has_average(const std::filesystem::path& model) {
  for (const auto& entry : std::filesystem::directory_iterator(model))
    if (entry.path().extension() == ".pth")
      return read_file(entry.path()).find("model_ema") != std::string::npos;
  return false;
}

LoadedVision load(const GoldenCase& g) { return load(g, g.model, nn::Purpose::training); }

TEST(GoldenVision, T39_LogitsLossAndEveryGradient) {
  KRAIT_GOLDEN_OR_SKIP(golden);
  KRAIT_GOLDEN_FOUND(vision_cases().size(), "vim");
  for (const std::filesystem::path& folder : vision_cases())
    for (const Recompute recompute : {Recompute::none, Recompute::cheap, Recompute::layer}) {
      const GoldenCase g(folder);
      const LoadedVision loaded = load(g);
      models::VisionMamba& model = *loaded.model;
      EXPECT_EQ(model.params().numel(), g.json.at("shapes").at("parameters").get<int64_t>());
      const Tensor &images = g.data.at("images"), &labels = g.data.at("labels");
      const VisionPass once(model, images, labels, false);
      const VisionPass pass(model, images, labels, true, recompute);
      const Values logits = testing::to_double(g.data.at("logits"));
      EXPECT_LE(testing::max_abs_error(once.logits, logits), g.bound("logits_f32_max_abs_err"));
      EXPECT_EQ(once.logits, pass.logits);
      // Of few images a foreign run's loss may be luckier than its logits, whose error moves a loss by twice as much.
      EXPECT_NEAR(pass.loss, g.json.at("loss").get<double>(),
                  g.bound("loss_f32_abs_err") + 2 * testing::max_abs_error(pass.logits, logits));
      for (const nn::Param& p : model.params())
        testing::expect_relative(testing::to_double(p.var.grad),
                                 testing::to_double(g.data.at("grad." + p.name)),
                                 g.bound("grad_f32_max_rel_err"), p.name);
    }
}

TEST(GoldenVision, TheMovingAverageIsAnotherModelAndFoldersReadBack) {
  KRAIT_GOLDEN_OR_SKIP(golden);
  for (const std::filesystem::path& folder : vision_cases()) {
    const GoldenCase g(folder);
    const Tensor &images = g.data.at("images"), &labels = g.data.at("labels");
    const LoadedVision loaded = load(g);
    const Values logits = VisionPass(*loaded.model, images, labels, false).logits;
    if (has_average(g.model)) {
      const LoadedVision average = load(g, g.model, nn::Purpose::inference, true);
      EXPECT_NE(VisionPass(*average.model, images, labels, false).logits, logits);
    }
    const testing::TempDir dir;
    save_vision_model(*loaded.model, dir.path(), DType::f32);
    EXPECT_TRUE(is_vision_model(dir.path()));
    const LoadedVision back = load_vision_model(
        dir.path(), {nn::Purpose::inference, std::nullopt, testing::test_device()});
    EXPECT_EQ(VisionPass(*back.model, images, labels, false).logits, logits);
    const testing::TempDir alone;  // weights saved by themselves
    std::vector<NamedTensor> tensors;
    for (const nn::Param& p : back.model->params()) tensors.push_back({p.name, p.value.detach()});
    if (testing::test_device().type == Device::cpu) {
      write_torch_archive(alone / "weights.pth", tensors);
      EXPECT_EQ(
          VisionPass(*load(g, alone.path(), nn::Purpose::inference).model, images, labels, false)
              .logits,
          logits);
    }
  }
}

TEST(GoldenVision, TenTrainingSteps) {
  KRAIT_GOLDEN_OR_SKIP(golden);
  for (const std::filesystem::path& folder : vision_cases()) {
    if (!std::filesystem::exists(folder / "train.json")) continue;
    const GoldenCase g(folder);
    const Json rule = read_json(folder / "train.json");
    const LoadedVision loaded = load(g);
    models::VisionMamba& model = *loaded.model;
    const auto B = rule.at("B").get<int64_t>(), steps = rule.at("steps").get<int64_t>();
    const auto beta1 = rule.at("betas").at(0).get<double>(),
               beta2 = rule.at("betas").at(1).get<double>();
    const auto error = [&](const char* key) {
      return 4 * rule.at("tolerance").at(key).get<double>();
    };
    for (nn::Param& p : model.params())
      for (const Tensor& moment : {p.m, p.v}) zero_bytes(moment);
    std::vector<float> start(ops::kStepScalars);
    const Tensor scalar_tensor =
        testing::on_test_device(Tensor(start.data(), DType::f32, {ops::kStepScalars}));
    Context c;
    c.device = testing::test_device();
    Arena arena(size_t{1} << 24, c.device);
    c.arena = &arena;
    for (int64_t s = 0; s < steps; ++s) {
      const VisionPass pass(model, g.data.at("train.images").slice(0, s * B, (s + 1) * B),
                            g.data.at("train.labels").slice(0, s * B, (s + 1) * B), true);
      std::vector<Tensor> grads;
      std::vector<ops::AdamwTensors> tensors;
      const Json& still = rule.at("not_decayed");
      for (const nn::Param& p : model.params()) {
        EXPECT_EQ(p.decay, std::find(still.begin(), still.end(), p.name) == still.end()) << p.name;
        grads.push_back(p.var.grad);
        tensors.push_back({p.value,
                           {},
                           p.var.grad,
                           p.m,
                           p.v,
                           p.decay ? rule.at("weight_decay").get<float>() : 0.0f});
      }
      arena.reset();
      ops::clip_grad_norm(c, grads, 1.0f, scalar_tensor);
      Values scalars = testing::to_double(scalar_tensor);
      const double norm = scalars[ops::kGradNorm];
      const auto step = static_cast<double>(s + 1);
      scalars[ops::kLearningRate] = rule.at("lr").get<double>();
      scalars[ops::kBias1] = 1 - std::pow(beta1, step);
      scalars[ops::kBias2] = 1 - std::pow(beta2, step);
      testing::set_values(scalar_tensor, scalars);
      ops::adamw(
          c, tensors,
          {static_cast<float>(beta1), static_cast<float>(beta2), rule.at("eps").get<float>()},
          scalar_tensor);
      const auto i = static_cast<size_t>(s);
      const Json& exact = rule.at("float64");
      EXPECT_NEAR(pass.loss, exact.at("losses").at(i).get<double>(), error("loss_f32_max_abs_err"));
      EXPECT_NEAR(norm / exact.at("grad_norms").at(i).get<double>(), 1,
                  error("grad_norm_f32_max_rel_err"));
    }
  }
}

}  // namespace
}  // namespace krait
