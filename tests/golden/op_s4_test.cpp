// S4 and S4D layers against state-spaces/s4: kernel, output, gradients, steps, states, attuning; and the
// initial systems.
#include "krait/nn/hippo.h"
#include "krait/ops/gate/gate.h"
#include "krait/ops/linear/linear.h"
#include "krait/ops/long_conv/long_conv.h"
#include "krait/ops/s4_scan/s4_scan.h"
#include "krait/testing/golden.h"

namespace krait {
namespace {

using namespace krait::testing;

struct S4Golden {
  std::filesystem::path folder;
  Json json = read_json(folder / "case.json");
  TensorFile data = read_safetensors(folder / "case.safetensors");
};

// Layers, of whatever name, or initial values.
std::vector<S4Golden> cases(const std::filesystem::path& golden, bool layers) {
  std::vector<S4Golden> found;
  for (const auto& entry : std::filesystem::directory_iterator(golden)) {
    if (!std::filesystem::exists(entry.path() / "case.json")) continue;
    const std::string system = read_json(entry.path() / "case.json").at("system");
    if (layers ? is_s4_layer(system) : system == kS4InitialValues) found.push_back({entry.path()});
  }
  return found;
}

struct Layer {
  const S4Golden& g;
  bool minimal;
  TestContext test;
  ops::S4Params p;
  ops::S4Options options;
  Tensor D, w, b;
  std::vector<std::pair<std::string, Tensor>> named;

  explicit Layer(const S4Golden& golden, bool record = false)
      : g(golden),
        minimal(golden.data.find("param.kernel.log_dt") != nullptr),
        test(record, kGoldenMemory) {
    if (minimal) {
      p.inv_dt = param("kernel.log_dt");
      p.A_real = param("kernel.log_A_real");
      p.A_imag = param("kernel.A_imag");
      p.C = param("kernel.C", {1, p.inv_dt.size(0), p.A_real.size(1), 2});
      options.positive_imag = true;
      D = param("D");
    } else {
      p.inv_dt = param("layer.kernel.inv_dt");
      p.A_real = param("layer.kernel.A_real");
      p.A_imag = param("layer.kernel.A_imag");
      p.B = param("layer.kernel.B");
      p.C = param("layer.kernel.C");
      if (g.data.find("param.layer.kernel.P")) p.P = param("layer.kernel.P");
      D = param("layer.D");
    }
    const Json& about = g.json.at("options");
    options.bilinear = about.value("disc", "zoh") == "bilinear";
    options.softplus_dt = about.value("dt_transform", "exp") == "softplus";
    if (const Tensor* l = g.data.find("param.layer.kernel.l_kernel"))
      options.length = l->as<int64_t>()[0];
    const int64_t H = D.size(-1);
    w = param("output_linear.0.weight", {2 * H, H});
    b = param("output_linear.0.bias");
  }
  Tensor param(const std::string& name, const Shape& shape = {}) {
    Tensor t = copied(test, g.data.at("param." + name));
    if (shape.rank > 0) t = t.reshape(shape);
    if (test.c.tape) test.tape.watch(t);
    named.emplace_back(name, t);
    return t;
  }
  Tensor input(const std::string& name) {
    Tensor t = copied(test, g.data.at(name));
    if (test.c.tape) test.tape.watch(t);
    return t;
  }
  double bound(const std::string& key) const {
    return 4 * g.json.at("tolerance").at(key).get<double>();
  }
  Tensor out(const Tensor& y) {
    const Tensor halves =
        ops::linear(test.c, ops::gate(test.c, ops::Gate::gelu, y), w, b, DType::f32);
    const int64_t H = halves.size(-1) / 2;
    return ops::gate(test.c, ops::Gate::sigmoid, halves.slice(-1, H, 2 * H),
                     halves.slice(-1, 0, H));
  }
  // What a case says of the error of "output" alone holds of other outputs and of states relative to their
  // largest values.
  double relative_bound() const {
    return bound("output_f32_max_abs_err") / max_abs(to_double(g.data.at("output")));
  }
  void expect_output(const Tensor& y, const std::string& name) {
    const Values exact = to_double(g.data.at(name));
    EXPECT_LE(max_abs_error(to_double(y), exact),
              std::max(bound("output_f32_max_abs_err"), relative_bound() * max_abs(exact)))
        << name;
  }

  void whole() {
    const Tensor u = input("input");
    const Tensor& stored = g.data.at("kernel");  // shorter than the sequence where l_max is
    const Values kernel = to_double(stored);
    const Tensor K = ops::s4_kernel(test.c, p, options, stored.size(-1));
    EXPECT_LE(max_abs_error(to_double(K), kernel), 0x1p-22 * max_abs(kernel)) << "kernel";
    const Tensor y = out(ops::long_conv(test.c, u, K, D));
    expect_output(y, "output");
    test.seed_grad(y, to_double(g.data.at("cotangent")));
    test.tape.backward(test.c);
    named.emplace_back("input", u);
    for (const auto& [name, t] : named) {
      const Tensor* exact = g.data.find("grad." + name);
      if (exact) {
        expect_relative(to_double(test.tape.grad(t)), to_double(*exact),
                        bound("grad_f32_max_rel_err"), name);
      } else {  // a learning rate of 0 makes a parameter a buffer
        EXPECT_TRUE(name.starts_with("layer.kernel.")) << name;
      }
    }
  }
  // The states of a DPLR layer hold both of each conjugate pair there, here the first.
  Tensor state(const std::string& name) {
    const Tensor& whole = g.data.at(name);
    const int64_t N = p.C.size(2);
    const Tensor half = test.tensor({whole.size(0), whole.size(1), N, 2}, DType::f32);
    copy_host(whole.slice(2, 0, N), half);
    return half;
  }
  void expect_state(const Tensor& got, const std::string& name) {
    const Values exact = to_double(state(name));
    EXPECT_LE(max_abs_error(to_double(got), exact),
              std::max(0x1p-22, relative_bound()) * max_abs(exact))
        << name;
  }
  void stepped() {
    if (!g.data.find("step.output")) return;
    const Tensor u = input("input");
    const ops::S4Steps steps = ops::s4_steps(p, options);
    const Tensor h = state("step.state");
    std::fill_n(h.as<float>(), h.numel(), 0.0f);
    const Tensor y = test.tensor(u.shape, DType::f32);
    for (int64_t t = 0; t < u.size(1); ++t)
      copy_host(ops::s4_scan(test.c, u.slice(1, t, t + 1), &steps, D, nullptr, h, h).y,
                y.slice(1, t, t + 1));
    expect_output(out(y), "step.output");
    expect_state(h, "step.state");
    const Tensor in = state("state.in"), last = state("state.in");
    const Tensor from = ops::s4_scan(test.c, u, &steps, D, nullptr, in, last).y;
    expect_output(out(from), "state.output");
    expect_state(last, "state.out");
  }
  void attuned() {
    if (!g.data.find("raw.C")) return;
    const Values C = to_double(p.C);
    copy_host(g.data.at("raw.C"), p.C);
    const int64_t length = std::exchange(options.length, 0);
    ops::s4_attune(p, options, length);
    options.length = length;
    EXPECT_LE(max_abs_error(to_double(p.C), C), 0x1p-22 * max_abs(C)) << "from raw C";
    if (!g.data.find("longer.C")) return;
    const int64_t longer = g.data.at("longer.l_kernel").as<int64_t>()[0];
    ops::s4_attune(p, options, longer);
    options.length = longer;
    const Values exact = to_double(g.data.at("longer.C"));
    EXPECT_LE(max_abs_error(to_double(p.C), exact), 0x1p-22 * max_abs(exact)) << "doubled";
    const Tensor u = input("longer.input");
    const Tensor K = ops::s4_kernel(test.c, p, options, u.size(1));
    expect_output(out(ops::long_conv(test.c, u, K, D)), "longer.output");
  }
};

TEST(Golden, S4LayersWholeSteppedAttuned) {
  KRAIT_GOLDEN_OR_SKIP(folder);
  const std::vector<S4Golden> found = cases(folder, true);
  KRAIT_GOLDEN_FOUND(found.size(), "s4");
  for (const S4Golden& g : found) {
    SCOPED_TRACE(g.folder.filename().string());
    Layer(g, true).whole();
    Layer(g).stepped();
    Layer(g).attuned();
  }
}

// The published class computes the diagonal ones in float32, with errors that grow with their size. A sign of each
// entry of P and B is free, the same for both.
void expect_system(const TensorFile& data, const std::string& prefix, const nn::InitialSystem& s,
                   const std::string& B_name) {
  const Tensor &A = data.at(prefix + ".A"), &B = data.at(prefix + B_name);
  ASSERT_EQ(static_cast<int64_t>(s.A.size()), A.size(0)) << prefix;
  const double size = std::max(1.0, static_cast<double>(s.A.size()) / 32);
  for (size_t n = 0; n < s.A.size(); ++n) {
    const auto i = static_cast<int64_t>(2 * n);
    const auto at = [&](const Tensor& t) { return std::complex<double>(get(t, i), get(t, i + 1)); };
    EXPECT_LE(std::abs(s.A[n] - at(A)), 3e-6 * size * std::abs(at(A))) << prefix << " A " << n;
    double sign = 1;
    if (!s.P.empty()) {
      const std::complex<double> P = at(data.at(prefix + ".P"));
      sign = std::abs(s.P[n] - P) < std::abs(s.P[n] + P) ? 1 : -1;
      EXPECT_LE(std::abs(sign * s.P[n] - P), 1e-6 * std::abs(P)) << prefix << " P " << n;
    } else {
      sign = std::abs(s.B[n] - at(B)) < std::abs(s.B[n] + at(B)) ? 1 : -1;
    }
    EXPECT_LE(std::abs(sign * s.B[n] - at(B)), 4e-6 * size * std::abs(at(B)))
        << prefix << " B " << n;
  }
}

TEST(Golden, S4InitialSystems) {
  KRAIT_GOLDEN_OR_SKIP(folder);
  const std::vector<S4Golden> found = cases(folder, false);
  KRAIT_GOLDEN_FOUND(found.size(), kS4InitialValues);
  for (const S4Golden& g : found)
    for (const NamedTensor& t : g.data) {  // "legs.8.A": kind, and twice the states kept
      const size_t dot = t.name.find('.'), end = t.name.rfind('.');
      const std::string kind = t.name.substr(0, dot), system = t.name.substr(0, end);
      if (!t.name.ends_with(".A") || kind == "dense") continue;
      const int64_t N = t.view.size(0);
      if (kind == "legs") {
        expect_system(g.data, system, nn::hippo_legs(N), ".B_clipped");
      } else {
        expect_system(g.data, system, nn::s4d_initial(kind == "legs-diagonal" ? "legs" : kind, N),
                      ".B");
      }
    }
}

}  // namespace
}  // namespace krait
