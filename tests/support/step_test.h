// Tests of ops that decode a token: what they leave is compared part by part.
#pragma once
#include <algorithm>
#include <deque>
#include <initializer_list>
#include <string>
#include <vector>

#include "krait/ops/step_states.h"
#include "krait/testing/op_test.h"

namespace krait::testing {

// Numbers of the stream, the convolution's state and the scan's, one behind the other: each of `got` within twice the
// error of the plain run. The stream and the convolution have `type`; a scan's state of bfloat16 is rounded in the plain
// run, too.
inline void expect_steps_within_twice_plain(const Values& got, const Values& exact,
                                            const std::vector<float>& plain, int64_t streams,
                                            int64_t convs, DType type, DType state,
                                            const std::string& name) {
  ASSERT_EQ(got.size(), exact.size());
  const auto part = [](const auto& v, int64_t begin, int64_t end) {
    return Values(v.begin() + begin, v.begin() + end);
  };
  const int64_t borders[] = {0, streams, streams + convs, static_cast<int64_t>(exact.size())};
  const char* names[] = {" stream", " conv_state", " ssm_state"};
  for (int i = 0; i < 3; ++i) {
    const int64_t begin = borders[i], end = borders[i + 1];
    Values plainly = part(plain, begin, end);
    const bool narrow = i == 2 && state == DType::bf16;
    if (narrow)
      for (double& x : plainly) x = static_cast<float>(bf16(static_cast<float>(x)));
    expect_within_twice_plain(part(got, begin, end), part(exact, begin, end), plainly,
                              narrow ? state : type, name + names[i]);
  }
}

// Scratch in the device's own memory, as programs have it, while this lives. Blocks of one kernel for all layers tell each
// other things through it, and what they write into the host's memory may come in another order, or never.
struct OwnScratch {
  explicit OwnScratch(Context& of) : c(of), before(of.arena) { c.arena = &arena; }
  ~OwnScratch() { c.arena = before; }
  OwnScratch(const OwnScratch&) = delete;

  Context& c;
  Arena* before;
  Arena arena{size_t{16} << 20, test_device()};
};

// A token through several layers by one op. Step(case, draw): a layer with its states and a stream, as the tests of one
// layer have it, drawn anew for each draw.
template <class Step>
struct Stack {
  template <class Case>
  Stack(const Case& each, size_t layers) {
    for (size_t i = 0; i < layers; ++i) {
      const Step& s = steps.emplace_back(each, 20 * i);
      of.push_back(s.l);
      states.push_back({s.conv_state, s.ssm_state});
    }
  }

  // The next stream and the last layer's states; empty where the op has no kernel.
  template <class Op>
  Values step(const Op& op) {
    const OwnScratch scratch(steps[0].t.c);
    const Tensor next = op(steps[0].t.c, of, states, steps[0].stream);
    if (!next) return {};
    Values all = to_double(next);
    for (const Tensor& t : {states.back().conv, states.back().ssm}) {
      const Values v = to_double(t);
      all.insert(all.end(), v.begin(), v.end());
    }
    return all;
  }
  // The same, layer by layer.
  template <class T, class Reference>
  std::vector<T> reference(const Reference& layer) const {
    std::vector<T> all;
    for (const Step& s : steps) {
      auto v = s.template values<T>();
      if (!all.empty()) std::copy_n(all.begin(), v.stream.size(), v.stream.begin());
      all = layer(v);
    }
    return all;
  }

  std::deque<Step> steps;
  std::vector<decltype(Step::l)> of;
  std::vector<ops::StepStates> states;
};

struct StackCase {
  int64_t B, D;
  size_t layers;
  DType state;
};
// Of one sequence, of each width that there are kernels for.
const std::vector<StackCase> one_sequence = {
    {1, 1024, 1, DType::f32}, {1, 1024, 3, DType::f32},  {1, 1024, 2, DType::bf16},
    {1, 1536, 1, DType::f32}, {1, 2048, 1, DType::bf16}, {1, 2560, 1, DType::f32},
    {1, 768, 1, DType::f32},  {1, 768, 3, DType::f32},   {1, 768, 2, DType::bf16}};

// Of several, of the width that there are kernels for.
const std::vector<StackCase> sequences = {{2, 2048, 1, DType::f32},
                                          {4, 2048, 3, DType::bf16},
                                          {7, 2048, 2, DType::f32},
                                          {11, 2048, 1, DType::bf16},
                                          {16, 2048, 1, DType::f32}};

// Stacks within twice the error of a plain run. of_width(D, state, B): a layer's case; reference(values, rounds): its
// outcome; convs(D): numbers of its convolution's state.
template <class Step, class OfWidth, class Op, class Reference, class Convs>
void expect_stacks_within_twice_plain(const std::vector<StackCase>& cases, const OfWidth& of_width,
                                      const Op& op, const Reference& reference,
                                      const Convs& convs) {
  if (test_device().type != Device::cuda) GTEST_SKIP() << "kernels of GPUs alone";
  for (const auto& [B, D, layers, state] : cases) {
    Stack<Step> s(of_width(D, state, B), layers);
    const Values exact = s.template reference<double>(
        [&](const auto& v) { return reference(v, [](double x) { return x; }); });
    const std::vector<float> plain = s.template reference<float>([&](const auto& v) {
      return reference(v, [](float x) { return static_cast<float>(bf16(x)); });
    });
    const Values got = s.step(op);
    if (got.empty()) GTEST_SKIP() << "no such kernel on this GPU";
    expect_steps_within_twice_plain(
        got, exact, plain, B * D, B * convs(D), DType::bf16, state,
        fmt::format("B{}, D{}, {} layers, {} state", B, D, layers, name_of(state)));
  }
}

// Nothing of an earlier token is taken for one of this.
template <class Step, class OfWidth, class Op>
void expect_stacks_of_the_same_bits(int64_t B, int64_t D, const OfWidth& of_width, const Op& op) {
  if (test_device().type != Device::cuda) GTEST_SKIP() << "kernels of GPUs alone";
  Stack<Step> a(of_width(D, DType::f32, B), 3), b(of_width(D, DType::f32, B), 3);
  for (int token = 0; token < 3; ++token) {
    const Values first = a.step(op);
    if (first.empty()) GTEST_SKIP() << "no such kernel on this GPU";
    expect_same_bits(first, b.step(op), fmt::format("B{}, D{}, token {}", B, D, token));
  }
}

}  // namespace krait::testing
