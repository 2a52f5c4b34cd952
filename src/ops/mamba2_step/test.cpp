#include "krait/ops/mamba2_step/mamba2_step.h"
#include "krait/ops/mamba2_step/reference.h"
#include "krait/testing/step_test.h"

namespace krait::testing {
namespace {

using ops::Mamba2Layer;

struct Case {
  int64_t B, D, H, N;
  DType type = DType::f32, state = DType::f32;
  int64_t P = 64, W = 4;
  bool conv_bias = true, D_per_channel = false, wide_conv = false;  // a float32 conv_state

  std::string name() const {
    return fmt::format("B{} D{} H{} P{} N{} W{} {}{}{} {} state{}", B, D, H, P, N, W, name_of(type),
                       conv_bias ? "" : " without conv_bias", D_per_channel ? " D per channel" : "",
                       name_of(state), wide_conv ? ", conv in float32" : "");
  }
};

struct Step {
  explicit Step(const Case& k, uint64_t draw = 0) : q(k) {
    t.c.activation = k.type;
    const auto matrix = [&](int64_t n, int64_t m, uint64_t seed) {
      return t.random({n, m}, k.type, draw + seed,
                      {.scale = 1 / std::sqrt(static_cast<double>(m))});
    };
    const int64_t E = k.H * k.P, C = E + 2 * k.N;
    l.norm = t.random({k.D}, DType::f32, draw + 1, {.mean = 1, .scale = 0.3});
    l.in_proj = matrix(E + C + k.H, k.D, 2);
    l.conv = t.random({C, k.W}, DType::f32, draw + 3, {.scale = 0.5});
    if (k.conv_bias) l.conv_bias = t.random({C}, DType::f32, draw + 4);
    l.dt_bias = t.random({k.H}, DType::f32, draw + 5, {.mean = -2});
    l.A_log = t.random({k.H}, DType::f32, draw + 6, {.mean = 1});
    l.D = t.random(k.D_per_channel ? Shape{k.H, k.P} : Shape{k.H}, DType::f32, draw + 7);
    l.gate_norm = t.random({E}, DType::f32, draw + 8, {.mean = 1, .scale = 0.3});
    l.out_proj = matrix(k.D, E, 9);
    l.dt_min = 0.02f, l.dt_max = 0.5f;
    stream = t.random({k.B, 1, k.D}, DType::f32, draw + 10, {.mean = 0.1, .scale = 3});
    conv_state = t.random({k.B, C, k.W}, k.wide_conv ? DType::f32 : k.type, draw + 11);
    ssm_state = t.random({k.B, k.H, k.P, k.N}, k.state, draw + 12);
  }

  template <class T>
  ops::reference::Mamba2Values<T> values() const {
    const auto of = [](const Tensor& tensor) {
      if constexpr (std::is_same_v<T, float>)
        return to_float(tensor);
      else
        return to_double(tensor);
    };
    return {of(l.norm),
            of(l.in_proj),
            of(l.conv),
            of(l.conv_bias),
            of(l.dt_bias),
            of(l.A_log),
            of(l.D),
            of(l.gate_norm),
            of(l.out_proj),
            of(stream),
            of(conv_state),
            of(ssm_state),
            q.B,
            q.D,
            q.H,
            q.P,
            q.N,
            q.W,
            static_cast<T>(l.eps),
            static_cast<T>(l.gate_eps),
            static_cast<T>(l.dt_min),
            static_cast<T>(l.dt_max)};
  }

  Values step() {
    const Tensor next = mamba2_step(t.c, l, stream, conv_state, ssm_state);
    Values all = to_double(next);
    for (const Tensor& s : {conv_state, ssm_state}) {
      const Values v = to_double(s);
      all.insert(all.end(), v.begin(), v.end());
    }
    return all;
  }

  Case q;
  TestContext t{false, size_t{48} << 20};
  Mamba2Layer l;
  Tensor stream, conv_state, ssm_state;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  const DType f32 = DType::f32, bf16 = DType::bf16;
  for (const DType type : {f32, bf16})
    for (const DType state : {f32, bf16}) {
      // Rows on both sides of every border between kernels, widths off their tiles.
      for (const int64_t B : {1, 3, 4, 16, 17, 64, 65, 128, 129})
        all.push_back({B, 40, 4, 64, type, state});
      all.push_back({2, 72, 8, 128, type, state, 64, 4, false, true});
      all.push_back({5, 72, 4, 256, type, state, 64, 4, true, true});
      all.push_back({6, 264, 12, 128, type, state});
      all.push_back({5, 72, 3, 128, type, state});  // heads not in pairs
      // Heads of many rows, with tiles of each size of states, and more of them than blocks.
      all.push_back({17, 72, 3, 128, type, state, 64, 4, true, true});
      all.push_back({66, 72, 3, 256, type, state});
      all.push_back({70, 72, 9, 64, type, state});
      if (type == bf16 && test_device().type == Device::cuda) {  // long references
        // Wide enough for wider blocks of in_proj, and of out_proj.
        all.push_back({18, 1032, 36, 64, type, state});
        all.push_back({18, 2056, 2, 64, type, state});
        all.push_back({18, 40, 68, 64, type, state});
        // With rows of in_proj left over by one round of blocks.
        for (const int64_t B : {1, 4}) all.push_back({B, 264, 64, 128, type, state});
        // in_proj and out_proj whose weights pass through shared memory.
        for (const int64_t B : {5, 16}) all.push_back({B, 264, 64, 64, type, state});
        all.push_back({9, 40, 60, 128, type, state, 64, 4, false, true});
        for (const int64_t B : {8, 16}) all.push_back({B, 2040, 2, 64, type, state});
        all.push_back({13, 1672, 4, 128, type, state});
      }
      // What the kernels are not made for.
      all.push_back({2, 33, 3, 16, type, state, 22});
      all.push_back({2, 32, 4, 64, type, state, 64, 3});
      all.push_back({0, 32, 4, 64, type, state});
      all.push_back({3, 40, 4, 64, type, state, 64, 4, true, false, true});
    }
  return all;
}

TEST(Mamba2Step, WithinTwiceAPlainRun) {
  for (const Case& q : cases()) {
    Step r(q);
    const bool rounds = q.type == DType::bf16;
    const Values exact =
        ops::reference::mamba2_step(r.values<double>(), [](double x) { return x; });
    const std::vector<float> plain = ops::reference::mamba2_step(
        r.values<float>(), [&](float x) { return rounds ? static_cast<float>(bf16(x)) : x; });
    const Values got = r.step();
    expect_steps_within_twice_plain(got, exact, plain, q.B * q.D, q.B * (q.H * q.P + 2 * q.N) * q.W,
                                    q.type, q.state, q.name());
  }
}

TEST(Mamba2Step, TwiceTheSameBits) {
  for (const DType type : {DType::f32, DType::bf16})
    for (const int64_t B : {1, 8, 33}) {
      Step a({B, 128, 8, 64, type}), b({B, 128, 8, 64, type});
      const ThreadCount one(1);
      const Values first = a.step();
      const ThreadCount two(2);
      expect_same_bits(first, b.step(), a.q.name());
    }
}

Case of_width(int64_t D, DType state, int64_t B = 1) {
  return {B, D, D / 32, 128, DType::bf16, state, 64, 4, true, state == DType::bf16};
}

void expect_stacks_within_twice_plain(const std::vector<StackCase>& stacks) {
  expect_stacks_within_twice_plain<Step>(
      stacks, of_width, ops::mamba2_stack,
      [](const auto& v, auto rounds) { return ops::reference::mamba2_step(v, rounds); },
      [](int64_t D) { return (2 * D + 256) * 4; });
}

TEST(Mamba2Stack, WithinTwiceAPlainRun) { expect_stacks_within_twice_plain(one_sequence); }

TEST(Mamba2Stack, TwiceTheSameBits) {
  expect_stacks_of_the_same_bits<Step>(1, 1024, of_width, ops::mamba2_stack);
  expect_stacks_of_the_same_bits<Step>(1, 768, of_width, ops::mamba2_stack);
}

TEST(Mamba2Stack, LeavesOtherSizes) {
  Stack<Step> s(of_width(64, DType::f32), 2);
  const Values before = to_double(s.steps[0].stream);
  EXPECT_TRUE(s.step(ops::mamba2_stack).empty());
  expect_same_bits(before, to_double(s.steps[0].stream), "stream");
}

TEST(Mamba2Step, NamesWhatDoesNotFit) {
  Step r({2, 32, 4, 16});
  r.l.gate_norm = r.t.random({32}, DType::f32, 1);
  try {
    r.step();
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "[mamba2_step] gate_norm: expected contiguous (256,), got (32,)");
  }
}

}  // namespace
}  // namespace krait::testing
