// selective_scan against selective_scan_ref and selective_state_update_ref of state-spaces/mamba. There
// time is the last axis, here channels.
#include "krait/ops/selective_scan/selective_scan.h"

#include "krait/ops/selective_scan/reference.h"
#include "krait/testing/golden.h"

namespace krait {
namespace {

using namespace krait::testing;

// Their names of the inputs, in the order of tensors() and fields() below.
constexpr const char* kScanNames[] = {"u", "delta", "A", "B", "C", "D", "z", "delta_bias", ""};
constexpr const char* kUpdateNames[] = {"x", "dt", "A", "B", "C", "D", "z", "dt_bias", "state"};

// A variant says so by the shape of A alone: (E, N, 2) instead of (E, N). Steps of heads have (H, P, N).
bool is_complex(const GoldenVariant& v, bool update) { return !update && v.at("in.A").rank() == 3; }

struct GoldenScan {
  const GoldenVariant& v;
  const bool update;  // one step onto a state
  TestContext test{true, kGoldenMemory};
  int64_t B = 0, L = 0, E = 0, N = 0, G = 1;
  ops::ScanInputs in;
  Tensor state_in;
  ops::ScanReference<float> plain;

  GoldenScan(const GoldenVariant& variant, bool is_update) : v(variant), update(is_update) {
    const Tensor& A = v.at("in.A");
    in.complex = is_complex(v, update);
    N = in.complex ? 2 * A.size(-2) : A.size(-1);
    E = A.numel() / N;
    B = v.at("out.y").size(0);
    L = update ? 1 : v.at("out.y").size(2);
    Tensor* const inputs[] = {&in.u, &in.dt, &in.A,       &in.B,    &in.C,
                              &in.D, &in.z,  &in.dt_bias, &state_in};
    std::vector<float>* const values[] = {&plain.u, &plain.dt,      &plain.A,
                                          &plain.B, &plain.C,       &plain.D,
                                          &plain.z, &plain.dt_bias, &plain.state_in};
    for (size_t i = 0; i < std::size(inputs); ++i) {
      const Tensor* t = v.find(std::string("in.") + name(i));
      if (!t) continue;
      *inputs[i] = ours(i, *t);
      test.tape.watch(*inputs[i]);
      const Values x = to_double(*inputs[i]);
      values[i]->assign(x.begin(), x.end());
    }
    in.softplus = v.options.at("softplus").get<bool>();
    for (const Tensor& t : {in.B, in.C})
      if (t.rank() == 4) G = t.size(2);
    plain.tokens = B * L, plain.E = E, plain.N = N, plain.G = G, plain.rows_out = B;
    plain.constant_B = in.B.rank() == 2, plain.constant_C = in.C.rank() == 2,
    plain.softplus = in.softplus, plain.complex = in.complex;
    for (int64_t b = 0; b <= B; ++b) plain.begin.push_back(b * L);
    for (int64_t b = 0; b < B; ++b) plain.row_in.push_back(b), plain.row_out.push_back(b);
  }

  const char* name(size_t i) const { return (update ? kUpdateNames : kScanNames)[i]; }

  // Input i, or its gradient, in Krait's layout.
  Tensor ours(size_t i, const Tensor& t) {
    const Tensor flat = copied(test, t);
    if (i == 2) return flat.reshape({E, N});
    if (i == 5 || i == 7) return flat.reshape({E});
    if (i == 8) return flat.reshape({B, E, N});
    if (i == 3 || i == 4) {
      if (update)
        return t.rank() == 3 ? flat.reshape({B, 1, t.size(1), N}) : flat.reshape({B, 1, N});
      if (t.shape == v.at("in.A").shape) return flat.reshape({E, N});  // constant
      const int64_t parts = in.complex ? 2 : 1, rows = t.numel() / (B * L * parts);
      const Tensor steps = swapped(test, flat.reshape({B, rows, L * parts}), parts);
      return t.rank() == 3 ? steps : steps.reshape({B, L, t.size(1), N});
    }
    return update ? flat.reshape({B, 1, E}) : swapped(test, flat);
  }

  void run() {
    const std::string state = update ? "state_after" : "last_state";
    const Tensor state_out = test.tensor({B, E, N}, DType::f32);
    const ops::ScanResult r = selective_scan(test.c, in, nullptr, state_in, state_out);
    const Values y = to_double(ours(0, v.at("out.y")));
    const Values last = to_double(v.at("out." + state));
    EXPECT_LE(max_abs_error(to_double(r.y), y), v.bound("y", y));
    EXPECT_LE(max_abs_error(to_double(r.state), last), v.bound(state, last));

    const Values dy = to_double(ours(0, v.at("cotangent.y"))),
                 dstate = to_double(v.at("cotangent." + state));
    test.seed_grad(r.y, dy);
    test.seed_grad(r.state, dstate);
    test.tape.backward(test.c);
    const auto g = plain.backward({dy.begin(), dy.end()}, {dstate.begin(), dstate.end()});
    const std::vector<float>* const float_run[] = {&g.u, &g.dt, &g.A,       &g.B,       &g.C,
                                                   &g.D, &g.z,  &g.dt_bias, &g.state_in};
    const Tensor inputs[] = {in.u, in.dt, in.A, in.B, in.C, in.D, in.z, in.dt_bias, state_in};
    PlainGradients plain_run;
    std::vector<Values> exact(std::size(inputs));
    for (size_t i = 0; i < std::size(inputs); ++i) {
      if (!inputs[i]) continue;
      exact[i] = to_double(ours(i, v.at(std::string("grad.") + name(i))));
      plain_run.add(to_double(*float_run[i]), exact[i]);
    }
    for (size_t i = 0; i < std::size(inputs); ++i) {
      if (!inputs[i]) continue;
      EXPECT_LE(max_abs_error(to_double(test.tape.grad(inputs[i])), exact[i]),
                plain_run.bound(exact[i]))
          << "d" << name(i);
    }
  }
};

void run_all(const std::filesystem::path& folder, const std::string& system, bool update,
             bool complex = false) {
  int n = 0;
  for (const GoldenVariant& v : golden_variants(folder, system)) {
    if (is_complex(v, update) != complex) continue;
    SCOPED_TRACE(v.name);
    GoldenScan(v, update).run();
    ++n;
  }
  KRAIT_GOLDEN_FOUND(n, system);
}

TEST(Golden, SelectiveScan) {
  KRAIT_GOLDEN_OR_SKIP(folder);
  run_all(folder, "selective-scan", false);
}

TEST(Golden, SelectiveStateUpdate) {
  KRAIT_GOLDEN_OR_SKIP(folder);
  run_all(folder, "selective-state-update", true);
}

TEST(Golden, ComplexSelectiveScan) {
  KRAIT_GOLDEN_OR_SKIP(folder);
  run_all(folder, "selective-scan", false, true);
}

}  // namespace
}  // namespace krait
