#include "krait/ops/mamba1_step/mamba1_step.h"
#include "krait/ops/mamba1_step/reference.h"
#include "krait/tensor/memory.h"
#include "krait/testing/step_test.h"

namespace krait::testing {
namespace {

using ops::Mamba1Layer;

struct Case {
  int64_t B, D, E, R;
  DType type = DType::f32;
  int64_t N = 16, W = 4;
  bool conv_bias = true;
  DType state = DType::f32;
  bool wide_conv = false;  // a float32 conv_state

  std::string name() const {
    return fmt::format("B{} D{} E{} R{} N{} W{} {}{} {} state{}", B, D, E, R, N, W, name_of(type),
                       conv_bias ? "" : " without conv_bias", name_of(state),
                       wide_conv ? ", conv in float32" : "");
  }
};

struct Step {
  explicit Step(const Case& k, uint64_t draw = 0) : q(k) {
    t.c.activation = k.type;
    const auto matrix = [&](int64_t n, int64_t m, uint64_t seed) {
      return t.random({n, m}, k.type, draw + seed,
                      {.scale = 1 / std::sqrt(static_cast<double>(m))});
    };
    l.norm = t.random({k.D}, DType::f32, draw + 1, {.mean = 1, .scale = 0.3});
    l.in_proj = matrix(2 * k.E, k.D, 2);
    l.conv = t.random({k.E, k.W}, DType::f32, draw + 3, {.scale = 0.5});
    if (k.conv_bias) l.conv_bias = t.random({k.E}, DType::f32, draw + 4);
    l.x_proj = matrix(k.R + 2 * k.N, k.E, 5);
    l.dt_proj = matrix(k.E, k.R, 6);
    l.dt_bias = t.random({k.E}, DType::f32, draw + 7, {.mean = -2});
    l.A_log = t.random({k.E, k.N}, DType::f32, draw + 8, {.mean = 1});
    l.D = t.random({k.E}, DType::f32, draw + 9);
    l.out_proj = matrix(k.D, k.E, 10);
    stream = t.random({k.B, 1, k.D}, DType::f32, draw + 11, {.mean = 0.1, .scale = 3});
    conv_state = t.random({k.B, k.E, k.W}, k.wide_conv ? DType::f32 : k.type, draw + 12);
    ssm_state = t.random({k.B, k.E, k.N}, k.state, draw + 13);
  }

  template <class T>
  ops::reference::Mamba1Values<T> values() const {
    const auto of = [](const Tensor& tensor) {
      if constexpr (std::is_same_v<T, float>)
        return to_float(tensor);
      else
        return to_double(tensor);
    };
    return {of(l.norm),    of(l.in_proj),
            of(l.conv),    of(l.conv_bias),
            of(l.x_proj),  of(l.dt_proj),
            of(l.dt_bias), of(l.A_log),
            of(l.D),       of(l.out_proj),
            of(stream),    of(conv_state),
            of(ssm_state), q.B,
            q.D,           q.E,
            q.N,           q.R,
            q.W,           static_cast<T>(l.eps)};
  }

  Values step() {
    const Tensor next = mamba1_step(t.c, l, stream, conv_state, ssm_state);
    Values all = to_double(next);
    for (const Tensor& s : {conv_state, ssm_state}) {
      const Values v = to_double(s);
      all.insert(all.end(), v.begin(), v.end());
    }
    return all;
  }

  Case q;
  TestContext t{false, size_t{q.B * q.E > int64_t{1} << 17 ? 160u : 32u} << 20};
  Mamba1Layer l;
  Tensor stream, conv_state, ssm_state;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const DType type : {DType::f32, DType::bf16}) {
    // Rows on both sides of every border between kernels, widths off their tiles.
    for (const int64_t B : {1, 2, 7, 8, 9, 15, 16, 17, 33, 64, 65, 100, 128, 130})
      all.push_back({B, 40, 88, 24, type});
    for (const int64_t R : {8, 64, 72, 128, 136, 256})
      all.push_back({R % 3, 64, 128, R, type, 16, 4, R % 16 == 0});
    all.push_back({1, 768, 1536, 48, type});  // mamba-130m
    all.push_back({3, 512, 1024, 32, type});
    // On both sides of where x_proj and the scan are one kernel.
    all.push_back({2, 16, 2048, 96, type});
    all.push_back({1, 64, 136, 96, type, 16, 4, true, DType::bf16});
    all.push_back({2, 64, 136, 104, type});
    all.push_back({1, 16, 2056, 24, type});
    all.push_back({5, 520, 264, 24, type});    // with an out_proj whose weights are all held
    all.push_back({20, 320, 1032, 24, type});  // with blocks that share out K
    for (const int64_t B : {1, 9, 33, 128})
      all.push_back({B, 40, 88, 24, type, 16, 4, true, DType::bf16});
    // What the kernels are not made for.
    all.push_back({2, 33, 66, 3, type});
    all.push_back({2, 32, 64, 8, type, 8});
    all.push_back({2, 32, 64, 8, type, 16, 3});
    all.push_back({0, 32, 64, 8, type});
    all.push_back({3, 40, 88, 24, type, 16, 4, true, DType::f32, true});
  }
  if (test_device().type != Device::cuda) return all;
  for (const DType type : {DType::f32, DType::bf16}) {
    // Wide enough for each width of a block of in_proj, and of out_proj.
    all.push_back({20, 1032, 2568, 24, type, 16, 4, true, DType::bf16});
    all.push_back({66, 40, 4104, 24, type, 16, 4, true, DType::bf16});
    all.push_back({66, 40, 4232, 24, type, 16, 4, true, DType::bf16});
    all.push_back({20, 2056, 72, 24, type, 16, 4, false, DType::bf16});
    all.push_back({20, 40, 5288, 24, type, 16, 4, true, DType::bf16});
    all.push_back({20, 1288, 72, 24, type, 16, 4, true, DType::bf16});
    all.push_back({66, 2312, 72, 24, type, 16, 4, true, DType::bf16});
  }
  // A scan of many rows in blocks of 64 and of 80 channels.
  all.push_back({100, 16, 2376, 128, DType::bf16, 16, 4, true, DType::bf16});
  all.push_back({113, 16, 4240, 136, DType::bf16, 16, 4, true, DType::bf16});
  return all;
}

TEST(Mamba1Step, WithinTwiceAPlainRun) {
  for (const Case& q : cases()) {
    Step r(q);
    const bool rounds = q.type == DType::bf16;
    const Values exact =
        ops::reference::mamba1_step(r.values<double>(), [](double x) { return x; });
    const std::vector<float> plain = ops::reference::mamba1_step(
        r.values<float>(), [&](float x) { return rounds ? static_cast<float>(bf16(x)) : x; });
    const Values got = r.step();
    expect_steps_within_twice_plain(got, exact, plain, q.B * q.D, q.B * q.E * q.W, q.type, q.state,
                                    q.name());
  }
}

TEST(Mamba1Step, TwiceTheSameBits) {
  for (const DType type : {DType::f32, DType::bf16})
    for (const int64_t B : {1, 8, 33}) {
      Step a({B, 128, 1024, 16, type}), b({B, 128, 1024, 16, type});
      const ThreadCount one(1);
      const Values first = a.step();
      const ThreadCount two(2);
      expect_same_bits(first, b.step(), a.q.name());
    }
}

Case of_width(int64_t D, DType state, int64_t B = 1) {
  return {B, D, 2 * D, D / 16, DType::bf16, 16, 4, true, state};
}

void expect_stacks_within_twice_plain(const std::vector<StackCase>& stacks) {
  expect_stacks_within_twice_plain<Step>(
      stacks, of_width, ops::mamba1_stack,
      [](const auto& v, auto rounds) { return ops::reference::mamba1_step(v, rounds); },
      [](int64_t D) { return 2 * D * 4; });
}

TEST(Mamba1Stack, WithinTwiceAPlainRun) { expect_stacks_within_twice_plain(one_sequence); }

TEST(Mamba1Stack, OfSequencesWithinTwiceAPlainRun) { expect_stacks_within_twice_plain(sequences); }

TEST(Mamba1Stack, TwiceTheSameBits) {
  expect_stacks_of_the_same_bits<Step>(1, 1024, of_width, ops::mamba1_stack);
  expect_stacks_of_the_same_bits<Step>(1, 768, of_width, ops::mamba1_stack);
  expect_stacks_of_the_same_bits<Step>(16, 2048, of_width, ops::mamba1_stack);
}

// The weights of so many layers come from memory, and the ring of slots goes round among them: what a warp still reads must
// not be overwritten. Without the fence in StackRing::leave every seventh run of 48 such layers gave other bits.
TEST(Mamba1Stack, ManyRunsOfManyLayersGiveTheSameBits) {
  if (test_device().type != Device::cuda) GTEST_SKIP() << "kernels of GPUs alone";
  for (const Case& of :
       {of_width(1536, DType::f32), of_width(768, DType::f32), of_width(2048, DType::f32, 16)}) {
    Step first(of);
    Context& c = first.t.c;
    const auto copied = [&](const Tensor& from) {
      const Tensor to = first.t.tensor(from.shape, from.dtype);
      copy(c, from, to);
      return to;
    };
    std::vector<ops::Mamba1Layer> layers(24, first.l);
    std::vector<ops::StepStates> states;
    for (ops::Mamba1Layer& l : layers) {
      for (Tensor* w : {&l.norm, &l.in_proj, &l.conv, &l.conv_bias, &l.x_proj, &l.dt_proj,
                        &l.dt_bias, &l.A_log, &l.D, &l.out_proj})
        *w = copied(*w);
      states.push_back({copied(first.conv_state), copied(first.ssm_state)});
    }
    const Tensor stream = copied(first.stream);
    const OwnScratch scratch(c);
    Values before;
    for (int run = 0; run < 100; ++run) {
      copy(c, first.stream, stream);
      for (const auto& [conv, ssm] : states)
        copy(c, first.conv_state, conv), copy(c, first.ssm_state, ssm);
      if (!ops::mamba1_stack(c, layers, states, stream))
        GTEST_SKIP() << "no such kernel on this GPU";
      const Values now = to_double(stream);
      if (run == 0) before = now;
      expect_same_bits(before, now, fmt::format("{}, run {}", of.name(), run));
    }
  }
}

TEST(Mamba1Stack, LeavesOtherSizes) {
  Stack<Step> s(of_width(64, DType::f32), 2);
  const Values before = to_double(s.steps[0].stream);
  EXPECT_TRUE(s.step(ops::mamba1_stack).empty());
  expect_same_bits(before, to_double(s.steps[0].stream), "stream");
}

TEST(Mamba1Step, NamesWhatDoesNotFit) {
  Step r({2, 32, 64, 8});
  r.l.D = r.t.random({32}, DType::f32, 1);
  try {
    r.step();
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "[mamba1_step] D: expected contiguous (64,), got (32,)");
  }
}

}  // namespace
}  // namespace krait::testing
