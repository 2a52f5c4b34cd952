// norm and gated_norm against the reference norms of state-spaces/mamba.
#include "krait/ops/norm/norm.h"

#include "krait/ops/gated_norm/gated_norm.h"
#include "krait/testing/golden.h"

namespace krait {
namespace {

using namespace krait::testing;

// Gradients sum some 24 products in float32; relative to their largest value.
constexpr double kGradientTolerance = 24 * 0x1p-24;

void run(const GoldenVariant& v) {
  TestContext test(true, kGoldenMemory);
  const auto input = [&](const std::string& name) {
    const Tensor* t = v.find("in." + name);
    if (!t) return Tensor();
    Tensor copy = copied(test, *t);
    test.tape.watch(copy);
    return copy;
  };
  const Tensor x = input("x"), w = input("weight"), b = input("bias"), residual = input("residual");
  const auto kind = v.options.at("kind") == "rms" ? ops::NormKind::rms : ops::NormKind::layer;
  const ops::NormResult r = ops::norm(test.c, kind, x, w, b, 1e-5f, DType::f32, residual);
  const Values y = to_double(v.at("out.y"));
  EXPECT_LE(max_abs_error(to_double(r.y), y), v.bound("y", y));
  test.seed_grad(r.y, to_double(v.at("cotangent.y")));
  if (residual) {
    const Values sum = to_double(v.at("out.residual_after"));
    EXPECT_LE(max_abs_error(to_double(r.sum), sum), v.bound("residual_after", sum));
    test.seed_grad(r.sum, to_double(v.at("cotangent.residual_after")));
  }
  test.tape.backward(test.c);
  const std::pair<const char*, Tensor> inputs[] = {
      {"x", x}, {"weight", w}, {"bias", b}, {"residual", residual}};
  for (const auto& [name, t] : inputs)
    if (t)
      expect_relative(to_double(test.tape.grad(t)), to_double(v.at(std::string("grad.") + name)),
                      kGradientTolerance, name);
}

TEST(Golden, Norm) {
  KRAIT_GOLDEN_OR_SKIP(folder);
  int n = 0;
  for (const GoldenVariant& v : golden_variants(folder, "norm")) {
    if (v.options.contains("group_size")) continue;  // see T6_T7_GatedNorm
    SCOPED_TRACE(v.name);
    run(v);
    ++n;
  }
  KRAIT_GOLDEN_FOUND(n, "norm");
}

void run_gated(const GoldenVariant& v) {
  TestContext test(true, kGoldenMemory);
  ops::GatedNormInputs in;
  const std::pair<const char*, Tensor*> inputs[] = {
      {"x", &in.x}, {"z", &in.z}, {"weight", &in.w}, {"bias", &in.b}};
  for (const auto& [name, to] : inputs)
    if (const Tensor* t = v.find(std::string("in.") + name)) {
      *to = copied(test, *t);
      test.tape.watch(*to);
    }
  in.groups = in.x.size(-1) / v.options.at("group_size").get<int64_t>();
  if (v.options.value("norm_before_gate", false)) in.order = ops::GateOrder::norm_first;
  const Tensor y = ops::gated_norm(test.c, in);
  const Values exact = to_double(v.at("out.y"));
  EXPECT_LE(max_abs_error(to_double(y), exact), v.bound("y", exact));
  test.seed_grad(y, to_double(v.at("cotangent.y")));
  test.tape.backward(test.c);
  for (const auto& [name, t] : inputs)
    if (*t)
      expect_relative(to_double(test.tape.grad(*t)), to_double(v.at(std::string("grad.") + name)),
                      kGradientTolerance, name);
}

TEST(Golden, T6_T7_GatedNorm) {
  KRAIT_GOLDEN_OR_SKIP(folder);
  int n = 0;
  for (const GoldenVariant& v : golden_variants(folder, "norm")) {
    if (!v.options.contains("group_size")) continue;
    SCOPED_TRACE(v.name);
    run_gated(v);
    ++n;
  }
  KRAIT_GOLDEN_FOUND(n, "norm");
}

}  // namespace
}  // namespace krait
