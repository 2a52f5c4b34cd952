// The Switch layer against llm-random's: output, balance loss, every gradient, the number of dropped tokens.
#include "cases.h"
#include "krait/ops/gate/gate.h"
#include "krait/ops/moe/moe.h"
#include "krait/testing/golden.h"

namespace krait {
namespace {

using namespace krait::testing;
namespace fs = std::filesystem;

struct SwitchLayer {
  SwitchLayer(const TensorFile& file, const Json& options, double capacity_factor)
      : t(true, kGoldenMemory) {
    const auto input = [&](const std::string& name) {
      Tensor copy = copied(t, file.at(name));
      t.tape.watch(copy);
      return copy;
    };
    x = input("input");
    gate = input("param.gating.gate");
    lin1 = input("param.expert_inner_function.lin1_weight");
    lin2 = input("param.expert_inner_function.lin2_weight");
    report = t.tensor({2}, DType::f32);
    const Tensor zero = t.from(Values(static_cast<size_t>(x.numel())), x.shape, DType::f32);
    const ops::RouteOptions o{options.at("routing_top_k").get<int64_t>(), false, capacity_factor,
                              options.at("load_balancing_loss_weight").get<float>(), 1};
    const ops::Routing r = ops::route(t.c, x, gate, true, o, report);
    const Tensor up = ops::expert_linear(t.c, ops::dispatch(t.c, x, r), lin1, r, true, DType::f32);
    const Tensor down =
        ops::expert_linear(t.c, ops::gate(t.c, ops::Gate::relu, up), lin2, r, true, DType::f32);
    y = ops::combine(t.c, down, r, zero);
  }
  TestContext t;
  Tensor x, gate, lin1, lin2, report, y;
};

void run(const fs::path& folder) {
  SCOPED_TRACE(folder.filename().string());
  const Json about = read_json(folder / "case.json");
  const TensorFile file = read_safetensors(folder / "case.safetensors");
  const Json &options = about.at("options"), &tolerance = about.at("tolerance");

  SwitchLayer full(file, options, 0);
  const Values y = to_double(file.at("full.output"));
  EXPECT_LE(max_abs_error(to_double(full.y), y),
            4 * tolerance.at("full.output_f32_max_abs_err").get<double>());
  const double balance = get(file.at("balance"), 0);
  EXPECT_NEAR(get(full.report, 0), balance, 4 * rounding(DType::f32) * balance);
  EXPECT_EQ(get(full.report, 1), 0);
  full.t.seed_grad(full.y, to_double(file.at("cotangent")));
  full.t.tape.backward(full.t.c);
  const std::pair<const char*, Tensor> inputs[] = {
      {"input", full.x},
      {"gating.gate", full.gate},
      {"expert_inner_function.lin1_weight", full.lin1},
      {"expert_inner_function.lin2_weight", full.lin2}};
  for (const auto& [name, t] : inputs)
    EXPECT_LE(
        max_abs_error(to_double(full.t.tape.grad(t)),
                      to_double(file.at(std::string("full.grad.") + name))),
        4 * tolerance.at("grad_f32_max_abs_err").at(std::string("full.") + name).get<double>())
        << name;

  // Which tokens are dropped is the layer's own choice; how many is not.
  SwitchLayer limited(file, options, options.at("capacity_factor").get<double>());
  EXPECT_EQ(get(limited.report, 1), about.at("dropped").get<double>());
}

TEST(Golden, SwitchLayer) {
  KRAIT_GOLDEN_OR_SKIP(golden);
  int n = 0;
  for (const auto& entry : fs::directory_iterator(golden)) {
    if (!fs::exists(entry.path() / "case.json")) continue;
    if (read_json(entry.path() / "case.json").at("system") != "switch mixture of experts") continue;
    run(entry.path());
    ++n;
  }
  KRAIT_GOLDEN_FOUND(n, "switch mixture of experts");
}

}  // namespace
}  // namespace krait
