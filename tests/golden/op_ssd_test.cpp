// ssd, followed by the gate where a variant has one, against ssd_minimal_discrete of state-spaces/mamba.
#include "krait/ops/ssd/ssd.h"

#include "krait/ops/ssd/reference.h"
#include "krait/testing/golden.h"

namespace krait {
namespace {

using namespace krait::testing;

constexpr const char* kNames[] = {"x", "dt", "A", "B", "C", "D", "dt_bias", "initial_states"};

struct GoldenSsd {
  const GoldenVariant& v;
  TestContext test{true, kGoldenMemory};
  int64_t B, L, H, P, N;
  ops::SsdInputs in;
  Tensor state_in;
  ops::Packing packing;

  explicit GoldenSsd(const GoldenVariant& variant) : v(variant) {
    const Shape x = v.at("in.x").shape, b = v.at("in.B").shape;
    B = x[0], L = x[1], H = x[2], P = x[3], N = b[3];
    Tensor* const inputs[] = {&in.x, &in.dt, &in.A, &in.B, &in.C, &in.D, &in.dt_bias, &state_in};
    for (size_t i = 0; i < std::size(inputs); ++i)
      if (const Tensor* t = v.find(std::string("in.") + kNames[i])) {
        *inputs[i] = copied(test, *t);
        if (i == 0 || i == 3 || i == 4)  // heads and groups beside each other
          *inputs[i] = inputs[i]->reshape({B, L, t->size(2) * t->size(3)});
        test.tape.watch(*inputs[i]);
      }
    in.groups = b[2];
    in.softplus = v.options.at("softplus").get<bool>();
    if (v.options.contains("dt_limit")) {
      in.dt_min = v.options.at("dt_limit").at(0).get<float>();
      in.dt_max = v.options.at("dt_limit").at(1).get<float>();
    }
    if (const Tensor* s = v.find("in.seq_idx")) pack(*s);
  }

  // A sequence for each run of equal numbers of a row; the last of a row leaves its state.
  void pack(const Tensor& seq) {
    std::vector<double> begin, out;
    for (int64_t i = 0; i < B * L; ++i) {
      const bool starts = i % L == 0 || get(seq, i) != get(seq, i - 1);
      if (!starts) continue;
      if (!out.empty() && i % L == 0) out.back() = static_cast<double>(i / L - 1);
      begin.push_back(static_cast<double>(i)), out.push_back(-1);
    }
    out.back() = static_cast<double>(B - 1);
    begin.push_back(static_cast<double>(B * L));
    const auto n = static_cast<int64_t>(out.size());
    packing.n = n, packing.longest = L;
    packing.begin = test.from(begin, {n + 1}, DType::i64, false);
    packing.state_in = test.from(Values(out.size(), -1), {n}, DType::i32, false);
    packing.state_out = test.from(out, {n}, DType::i32, false);
  }

  ops::SsdReference<float> plain() const {
    ops::SsdReference<float> r;
    r.tokens = B * L, r.H = H, r.P = P, r.N = N, r.G = in.groups, r.rows_out = B;
    r.softplus = in.softplus, r.dt_min = in.dt_min, r.dt_max = in.dt_max;
    r.D_per_channel = in.D && in.D.rank() == 2;
    r.x = to_float(in.x), r.dt = to_float(in.dt), r.A = to_float(in.A), r.B = to_float(in.B),
    r.C = to_float(in.C), r.D = to_float(in.D), r.dt_bias = to_float(in.dt_bias),
    r.state_in = to_float(state_in);
    const int64_t n = packing.n ? packing.n : B;
    for (int64_t s = 0; s <= n; ++s)
      r.begin.push_back(packing.n ? static_cast<int64_t>(get(packing.begin, s)) : s * L);
    for (int64_t s = 0; s < n; ++s) {
      r.row_in.push_back(packing.n ? -1 : s);
      r.row_out.push_back(packing.n ? static_cast<int64_t>(get(packing.state_out, s)) : s);
    }
    return r;
  }

  void run() {
    const Tensor state_out = test.tensor({B, H, P, N}, DType::f32);
    const ops::SsdResult r = ssd(test.c, in, packing.n ? &packing : nullptr, state_in, state_out);
    const Values last = to_double(v.at("out.final_states"));
    EXPECT_LE(max_abs_error(to_double(r.state), last), v.bound("final_states", last));
    const Values y = to_double(v.at("out.y")), dstate = to_double(v.at("cotangent.final_states"));
    Values dy = to_double(v.at("cotangent.y")), got = to_double(r.y);
    if (const Tensor* z = v.find("in.z")) {  // y silu(z): the gate of the block's norm
      for (size_t i = 0; i < dy.size(); ++i) {
        const double gate = get(*z, static_cast<int64_t>(i));
        const double silu = gate / (1 + std::exp(-gate));
        got[i] *= silu, dy[i] *= silu;
      }
    }
    EXPECT_LE(max_abs_error(got, y), v.bound("y", y));
    test.seed_grad(r.y, dy);
    test.seed_grad(r.state, dstate);
    test.tape.backward(test.c);
    auto g = plain().backward({dy.begin(), dy.end()}, {dstate.begin(), dstate.end()});
    const std::vector<float>* const float_run[] = {&g.x, &g.dt, &g.A,       &g.B,
                                                   &g.C, &g.D,  &g.dt_bias, &g.state_in};
    const Tensor inputs[] = {in.x, in.dt, in.A, in.B, in.C, in.D, in.dt_bias, state_in};
    PlainGradients plain_run;
    std::vector<Values> exact(std::size(inputs));
    for (size_t i = 0; i < std::size(inputs); ++i) {
      if (!inputs[i]) continue;
      exact[i] = to_double(v.at(std::string("grad.") + kNames[i]));
      plain_run.add(to_double(*float_run[i]), exact[i]);
    }
    for (size_t i = 0; i < std::size(inputs); ++i) {
      if (!inputs[i]) continue;
      EXPECT_LE(max_abs_error(to_double(test.tape.grad(inputs[i])), exact[i]),
                plain_run.bound(exact[i]))
          << "d" << kNames[i];
    }
  }
};

TEST(Golden, Ssd) {
  KRAIT_GOLDEN_OR_SKIP(folder);
  int n = 0;
  for (const GoldenVariant& v : golden_variants(folder, "ssd")) {
    SCOPED_TRACE(v.name);
    GoldenSsd(v).run();
    ++n;
  }
  KRAIT_GOLDEN_FOUND(n, "ssd");
}

}  // namespace
}  // namespace krait
