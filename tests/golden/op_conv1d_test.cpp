// conv1d_causal against causal-conv1d. There the last axis of x is time, here channels.
#include "krait/ops/conv1d_causal/conv1d_causal.h"
#include "krait/testing/golden.h"

namespace krait {
namespace {

using namespace krait::testing;

// Gradients sum some 40 products in float32; relative to their largest value.
constexpr double kGradientTolerance = 40 * 0x1p-24;

struct Golden {
  const GoldenVariant& v;
  TestContext test{true, kGoldenMemory};
  Tensor x, k, bias, state_in, state_out;
  ops::Packing packing;
  bool packed = false;

  explicit Golden(const GoldenVariant& variant) : v(variant) {
    k = watched(copied(test, v.at("in.weight")));
    x = watched(time_last(v.at("in.x")));
    if (const Tensor* b = v.find("in.bias")) bias = watched(copied(test, *b));
    for (const char* name : {"in.initial_states", "in.conv_state"})
      if (const Tensor* s = v.find(name)) state_in = watched(by_time(*s, 0));
    for (const char* name : {"out.final_states", "out.conv_state_after"})
      if (const Tensor* s = v.find(name)) state_out = test.tensor(s->shape, DType::f32);
    if (const Tensor* id = v.find("in.seq_idx")) pack(*id);
  }

  Tensor watched(Tensor t) {
    test.tape.watch(t);
    return t;
  }
  // (B, E, L), or (B, E) for one token, as (B, L, E)
  Tensor time_last(const Tensor& t) {
    return swapped(test, t.rank() == 3 ? t : t.reshape({t.size(0), t.size(1), 1}));
  }
  // A state, oldest first. With cache_seqlens there it is a ring, of which row b has been written that many times,
  // and `later` times more.
  Tensor by_time(const Tensor& t, int64_t later) {
    const Tensor out = copied(test, t), *written = v.find("in.cache_seqlens");
    const int64_t E = t.size(1), S = t.size(2);
    for (int64_t i = 0; written && i < t.numel(); ++i) {
      const auto at = static_cast<int64_t>(get(*written, i / (E * S))) + later + i % S;
      set(out, i, get(t, i / S * S + at % S));
    }
    return out;
  }
  // Each run of equal numbers in a row is a sequence.
  void pack(const Tensor& id) {
    std::vector<int64_t> begin;
    const int64_t L = id.size(1);
    for (int64_t i = 0; i < id.numel(); ++i)
      if (i % L == 0 || get(id, i) != get(id, i - 1)) begin.push_back(i);
    packing.n = static_cast<int64_t>(begin.size());
    begin.push_back(id.numel());
    packing.begin = test.tensor({packing.n + 1}, DType::i64);
    packing.state_in = test.tensor({packing.n}, DType::i32);  // all -1
    packing.state_out = test.tensor({packing.n}, DType::i32);
    for (size_t i = 0; i < begin.size(); ++i) {
      set(packing.begin, static_cast<int64_t>(i), static_cast<double>(begin[i]));
      if (i > 0) packing.longest = std::max(packing.longest, begin[i] - begin[i - 1]);
    }
    packed = true;
  }

  void run() {
    const bool silu = v.options.at("activation") == "silu";
    const ops::ConvResult r =
        conv1d_causal(test.c, x, k, bias, silu, packed ? &packing : nullptr, state_in, state_out);
    const Values y = to_double(time_last(v.at("out.y")));
    EXPECT_LE(max_abs_error(to_double(r.y), y), v.bound("y", y));
    for (const std::string name : {"final_states", "conv_state_after"}) {
      if (const Tensor* s = v.find("out." + name)) {
        const int64_t L = x.size(1);
        EXPECT_EQ(to_double(r.state), to_double(by_time(*s, L))) << name;  // copies, exact
        test.seed_grad(r.state, to_double(by_time(v.at("cotangent." + name), L)));
      }
    }
    test.seed_grad(r.y, to_double(time_last(v.at("cotangent.y"))));
    test.tape.backward(test.c);
    expect_gradient("x", x, time_last(v.at("grad.x")));
    expect_gradient("weight", k, v.at("grad.weight"));
    for (const char* name : {"bias", "initial_states", "conv_state"})
      if (const Tensor* g = v.find(std::string("grad.") + name))
        std::string(name) == "bias" ? expect_gradient(name, bias, *g)
                                    : expect_gradient(name, state_in, by_time(*g, 0));
  }
  void expect_gradient(const char* name, const Tensor& t, const Tensor& exact) {
    expect_relative(to_double(test.tape.grad(t)), to_double(exact), kGradientTolerance, name);
  }
};

TEST(Golden, CausalConv1d) {
  KRAIT_GOLDEN_OR_SKIP(folder);
  int n = 0;
  for (const GoldenVariant& v : golden_variants(folder, "causal-conv1d")) {
    SCOPED_TRACE(v.name);
    Golden(v).run();
    ++n;
  }
  KRAIT_GOLDEN_FOUND(n, "causal-conv1d");
}

}  // namespace
}  // namespace krait
