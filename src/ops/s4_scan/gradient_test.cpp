// Gradients of s4_scan: those of the convolution, which complex steps have proven, and through states.
#include "krait/ops/long_conv/long_conv.h"
#include "krait/ops/s4_scan/s4_scan.h"
#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

constexpr int64_t B = 2, H = 6, S = 2, N = 5,
                  L = 300;  // more than one stretch that the adjoint keeps

struct Kind {
  const char* name;
  bool dplr, bilinear;
};
constexpr Kind kKinds[] = {{"zoh", false, false}, {"bilinear", false, true}, {"dplr", true, true}};

// A system as variables, its inputs and what its results are weighed by.
struct Recorded {
  TestContext test{true, size_t{64} << 20};
  S4Learned learned;
  Tensor u, D, h0;
  Values dy = random_values(B * L * H, 20), dstate = random_values(B * H * N * 2, 21);

  explicit Recorded(const Kind& kind, DType dtype = DType::f32) {
    S4Params& p = learned.params;
    p.inv_dt = test.random({H, 1}, DType::f32, 1, {.mean = -3.0, .scale = 0.5});
    p.A_real = test.random({S, N}, DType::f32, 2, {.mean = -0.7, .scale = 0.3});
    p.A_imag = test.random({S, N}, DType::f32, 3, {.mean = 4, .scale = 2});
    p.B = test.random({1, S, N, 2}, DType::f32, 4);
    p.C = test.random({1, H, N, 2}, DType::f32, 5);
    if (kind.dplr) p.P = test.random({1, S, N, 2}, DType::f32, 6, {.scale = 0.8});
    learned.options.bilinear = kind.bilinear;
    if (kind.dplr) {
      s4_attune(p, {}, L);
      learned.options.length = L;
    }
    learned.steps = std::make_shared<S4Steps>(s4_steps(p, learned.options));
    u = test.random({B, L, H}, dtype, 8);
    D = test.random({1, H}, DType::f32, 7);
    h0 = test.random({B, H, N, 2}, DType::f32, 9);
  }
  S4ScanResult scan(const Tensor& part, const Tensor& in, const Tensor& out,
                    const Packing* packing = nullptr) {
    return s4_scan(test.c, part, learned.steps.get(), D, packing, in, out, &learned);
  }
  void back() { test.tape.backward(test.c); }
  std::vector<std::pair<const char*, Tensor>> inputs() const {
    const S4Params& p = learned.params;
    std::vector<std::pair<const char*, Tensor>> all = {
        {"u", u},   {"D", D},  {"inv_dt", p.inv_dt}, {"A_real", p.A_real}, {"A_imag", p.A_imag},
        {"B", p.B}, {"C", p.C}};
    if (p.P) all.emplace_back("P", p.P);
    return all;
  }
};

void expect_same_gradients(Recorded& got, Recorded& exact, double tolerance) {
  const auto mine = got.inputs(), theirs = exact.inputs();
  for (size_t i = 0; i < mine.size(); ++i)
    expect_relative(to_double(got.test.tape.grad(mine[i].second)),
                    to_double(exact.test.tape.grad(theirs[i].second)), tolerance, mine[i].first);
}

TEST(S4ScanGradient, IsThatOfTheConvolution) {
  for (const Kind& kind : kKinds) {
    SCOPED_TRACE(kind.name);
    Recorded scanned(kind), convolved(kind);
    scanned.test.seed_grad(scanned.scan(scanned.u, {}, {}).y, scanned.dy);
    scanned.back();
    const Tensor K =
        s4_kernel(convolved.test.c, convolved.learned.params, convolved.learned.options, L);
    convolved.test.seed_grad(long_conv(convolved.test.c, convolved.u, K, convolved.D),
                             convolved.dy);
    convolved.back();
    expect_same_gradients(scanned, convolved, 8 * rounding(DType::f32));
  }
}

// From a state to a state in one call, or in two joined by a state that is a variable.
TEST(S4ScanGradient, FlowsThroughStates) {
  for (const Kind& kind : kKinds) {
    SCOPED_TRACE(kind.name);
    Recorded whole(kind), halves(kind);
    const auto state = [](Recorded& r) { return r.test.tensor({B, H, N, 2}, DType::f32); };
    const S4ScanResult one = whole.scan(whole.u, whole.h0, state(whole));
    whole.test.seed_grad(one.y, whole.dy);
    whole.test.seed_grad(one.state, whole.dstate);
    whole.back();
    const int64_t cut = 131;
    for (int64_t b = 0; b < B; ++b) {
      const auto row = [b](const Tensor& t) { return t.slice(0, b, b + 1); };
      const auto part = [](const Values& v, int64_t begin, int64_t end) {
        return Values(v.begin() + begin, v.begin() + end);
      };
      const auto end_of = [&] { return halves.test.tensor({1, H, N, 2}, DType::f32); };
      const S4ScanResult first =
          halves.scan(row(halves.u).slice(1, 0, cut), row(halves.h0), end_of());
      const S4ScanResult second =
          halves.scan(row(halves.u).slice(1, cut, L), first.state, end_of());
      halves.test.seed_grad(first.y, part(halves.dy, b * L * H, (b * L + cut) * H));
      halves.test.seed_grad(second.y, part(halves.dy, (b * L + cut) * H, (b + 1) * L * H));
      halves.test.seed_grad(second.state, part(halves.dstate, b * H * N * 2, (b + 1) * H * N * 2));
    }
    halves.back();
    expect_same_gradients(halves, whole, 16 * rounding(DType::f32));
    expect_relative(to_double(halves.test.tape.grad(halves.h0)),
                    to_double(whole.test.tape.grad(whole.h0)), 16 * rounding(DType::f32), "h0");
  }
}

// y and the state after are linear in the state before: its gradient is what they weigh, by the definition.
TEST(S4ScanGradient, OfTheStateBeforeByFiniteDifferences) {
  for (const Kind& kind : kKinds) {
    SCOPED_TRACE(kind.name);
    Recorded r(kind);
    const auto weighed = [&](const Tensor& from) {
      const Tensor to = r.test.tensor({B, H, N, 2}, DType::f32);
      const Values y = to_double(s4_scan(r.test.c, r.u.detach(), r.learned.steps.get(),
                                         r.D.detach(), nullptr, from.detach(), to)
                                     .y);
      return dot(y, r.dy) + dot(to_double(to), r.dstate);
    };
    const S4ScanResult y = r.scan(r.u, r.h0, r.test.tensor({B, H, N, 2}, DType::f32));
    r.test.seed_grad(y.y, r.dy);
    r.test.seed_grad(y.state, r.dstate);
    r.back();
    const Values dh0 = to_double(r.test.tape.grad(r.h0));
    for (const int64_t i : {int64_t{0}, int64_t{7}, B * H * N * 2 - 1}) {
      const double value = get(r.h0, i);
      set(r.h0, i, value + 64);
      const double above = weighed(r.h0);
      set(r.h0, i, value - 64);
      const double below = weighed(r.h0);
      set(r.h0, i, value);
      EXPECT_NEAR((above - below) / 128, dh0[static_cast<size_t>(i)], 2e-5 * max_abs(dh0)) << i;
    }
  }
}

// Packed in one row: the gradients are the sums of the sequences' own, and a state that starts several adds up.
TEST(S4ScanGradient, T25_PackedSequencesGiveTheirSums) {
  for (const Kind& kind : kKinds) {
    SCOPED_TRACE(kind.name);
    Recorded packed(kind), alone(kind);
    const auto pack = [](Recorded& r, const Values& begin, const Values& in, const Values& out) {
      Packing p;
      p.n = static_cast<int64_t>(in.size());
      p.longest = L;
      p.begin = r.test.from(begin, {p.n + 1}, DType::i64, false);
      p.state_in = r.test.from(in, {p.n}, DType::i32, false);
      p.state_out = r.test.from(out, {p.n}, DType::i32, false);
      return p;
    };
    const Packing packing = pack(packed, {0, 70, 71, 400, 600}, {1, -1, 1, 0}, {0, -1, -1, 1});
    const S4ScanResult all =
        packed.scan(packed.u, packed.h0, packed.test.tensor({B, H, N, 2}, DType::f32), &packing);
    packed.test.seed_grad(all.y, packed.dy);
    packed.test.seed_grad(all.state, packed.dstate);
    packed.back();
    const Tensor flat = alone.u.reshape({1, B * L, H});
    const auto one = [&](int64_t begin, int64_t end, int64_t in, int64_t out) {
      const auto row = [](int64_t r, const Tensor& t) { return t.slice(0, r, r + 1); };
      const Tensor to = out < 0 ? Tensor() : alone.test.tensor({1, H, N, 2}, DType::f32);
      const S4ScanResult y =
          alone.scan(flat.slice(1, begin, end), in < 0 ? Tensor() : row(in, alone.h0), to);
      alone.test.seed_grad(y.y, Values(alone.dy.begin() + begin * H, alone.dy.begin() + end * H));
      if (out >= 0)
        alone.test.seed_grad(y.state, Values(alone.dstate.begin() + out * H * N * 2,
                                             alone.dstate.begin() + (out + 1) * H * N * 2));
    };
    one(0, 70, 1, 0);
    one(70, 71, -1, -1);
    one(71, 400, 1, -1);
    one(400, 600, 0, 1);
    alone.back();
    expect_same_gradients(packed, alone, 16 * rounding(DType::f32));
    expect_relative(to_double(packed.test.tape.grad(packed.h0)),
                    to_double(alone.test.tape.grad(alone.h0)), 16 * rounding(DType::f32), "h0");
  }
}

TEST(S4ScanGradient, BitsDoNotDependOnTheNumberOfThreads) {
  const auto gradients = [](int n) {
    const ThreadCount count(n);
    Recorded r(kKinds[2], DType::bf16);
    const S4ScanResult y = r.scan(r.u, r.h0, r.test.tensor({B, H, N, 2}, DType::f32));
    r.test.seed_grad(y.y, r.dy);
    r.test.seed_grad(y.state, r.dstate);
    r.back();
    Values all = to_double(r.test.tape.grad(r.h0));
    for (const auto& [name, t] : r.inputs())
      for (const double v : to_double(r.test.tape.grad(t))) all.push_back(v);
    return all;
  };
  expect_same_bits(gradients(1), gradients(4), "4 threads");
}

TEST(S4ScanGradient, WithoutTheParametersIsRefused) {
  Recorded r(kKinds[0]);
  EXPECT_THROW(s4_scan(r.test.c, r.u, r.learned.steps.get(), r.D), Error);
}

}  // namespace
}  // namespace krait::ops
