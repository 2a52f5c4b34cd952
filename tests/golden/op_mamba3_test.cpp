// mamba3_scan against the references of state-spaces/mamba, SISO and MIMO. There numbers a token and head
// are (B, H, L).
#include "krait/ops/mamba3_scan/mamba3_scan.h"
#include "krait/testing/golden.h"

namespace krait {
namespace {

using namespace krait::testing;

// Gradients sum some hundred products in float32; relative to their largest value.
constexpr double kGradientTolerance = 100 * 0x1p-24;

struct GoldenMamba3 {
  const GoldenVariant& v;
  TestContext test{true, kGoldenMemory};
  int64_t B, L, H, P, N, R;
  ops::Mamba3Inputs in;
  ops::Mamba3State from, to;
  ops::Packing packing;
  std::vector<std::pair<std::string, Tensor*>> inputs;

  GoldenMamba3(const GoldenVariant& variant, bool mimo) : v(variant) {
    const Tensor& K = v.at("in.K");
    const Tensor& V = v.at("in.V");
    B = V.size(0), L = V.size(1), H = V.size(2), P = V.size(3), N = K.size(-1);
    R = mimo ? K.size(2) : 1;
    in.halves = mimo;
    inputs = {{"Q", &in.C},
              {"K", &in.B},
              {"V", &in.x},
              {"Z", &in.z},
              {"ADT", &in.adt},
              {"DT", &in.dt},
              {"Trap", &in.trap},
              {"Q_bias", &in.C_bias},
              {"K_bias", &in.B_bias},
              {"Angles", &in.angle},
              {"D", &in.D},
              {"MIMO_V", &in.mimo_x},
              {"MIMO_Z", &in.mimo_z},
              {"MIMO_Out", &in.mimo_o},
              {"norm_weight", &in.norm},
              {"angle", &from.angle},
              {"ssm", &from.ssm},
              {"k", &from.k},
              {"v", &from.v}};
    for (auto& [name, t] : inputs)
      if (const Tensor* theirs = v.find("in." + name)) {
        *t = ours(name, *theirs);
        test.tape.watch(*t);
      }
    const int64_t rows = v.at("out.v_after").size(0);
    to = {test.tensor({rows, H, in.angle.size(-1)}, DType::f32),
          test.tensor({rows, H, P, N}, DType::f32), test.tensor({rows, R, H, N}, DType::f32),
          test.tensor({rows, H, P}, DType::f32)};
    if (const Tensor* begin = v.find("in.cu_seqlens")) pack(*begin);
  }

  Tensor ours(const std::string& name, const Tensor& t) {
    if (name == "ADT" || name == "DT" || name == "Trap") return swapped(test, t);
    const Tensor flat = copied(test, t);
    if (name == "V" || name == "Z" || name == "y") return flat.reshape({B, L, H * P});
    if (name == "Q" || name == "K") return flat.reshape({B, L, R, t.size(-2), N});
    if (name == "Q_bias" || name == "K_bias") return flat.reshape({H, R, N});
    if (name == "k" || name == "k_after") return flat.reshape({t.size(0), R, H, N});
    return flat;
  }

  void pack(const Tensor& begin) {
    packing.n = begin.numel() - 1;
    packing.begin = test.tensor(begin.shape, DType::i64);
    packing.state_in = test.tensor({packing.n}, DType::i32);
    packing.state_out = test.tensor({packing.n}, DType::i32);
    set(packing.begin, 0, get(begin, 0));
    for (int64_t i = 0; i < packing.n; ++i) {
      set(packing.begin, i + 1, get(begin, i + 1));
      set(packing.state_in, i, static_cast<double>(i));
      set(packing.state_out, i, static_cast<double>(i));
      packing.longest =
          std::max(packing.longest, static_cast<int64_t>(get(begin, i + 1) - get(begin, i)));
    }
  }

  void run() {
    const ops::Mamba3Result r = mamba3_scan(test.c, in, packing.n ? &packing : nullptr, from, to);
    const std::pair<const char*, Tensor> outputs[] = {{"y", r.y},
                                                      {"angle_after", r.state.angle},
                                                      {"ssm_after", r.state.ssm},
                                                      {"k_after", r.state.k},
                                                      {"v_after", r.state.v}};
    for (const auto& [name, t] : outputs) {
      const Values exact = to_double(ours(name, v.at(std::string("out.") + name)));
      EXPECT_LE(max_abs_error(to_double(t), exact), v.bound(name, exact)) << name;
      test.seed_grad(t, to_double(ours(name, v.at(std::string("cotangent.") + name))));
    }
    test.tape.backward(test.c);
    for (const auto& [name, t] : inputs) {
      if (!*t) continue;
      const Values exact = to_double(ours(name, v.at("grad." + name)));
      // That of ADT is a difference of sums of the size of those in DT's (see the op's own test).
      const double scale = name == "ADT"
                               ? std::max(max_abs(exact), max_abs(to_double(v.at("grad.DT"))))
                               : max_abs(exact);
      EXPECT_LE(max_abs_error(to_double(test.tape.grad(*t)), exact), kGradientTolerance * scale)
          << "d" << name << ", largest value " << max_abs(exact);
    }
  }
};

void run_all(const std::filesystem::path& folder, const std::string& system, bool mimo) {
  int n = 0;
  for (const GoldenVariant& v : golden_variants(folder, system)) {
    SCOPED_TRACE(v.name);
    GoldenMamba3(v, mimo).run();
    ++n;
  }
  KRAIT_GOLDEN_FOUND(n, system);
}

TEST(Golden, Mamba3Siso) {
  KRAIT_GOLDEN_OR_SKIP(folder);
  run_all(folder, "mamba3-siso", false);
}

TEST(Golden, Mamba3Mimo) {
  KRAIT_GOLDEN_OR_SKIP(folder);
  run_all(folder, "mamba3-mimo", true);
}

}  // namespace
}  // namespace krait
