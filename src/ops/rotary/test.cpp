// rotary against the double reference: values, and gradients as the transposed rotation.
#include "krait/ops/rotary/reference.h"
#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

struct Case {
  int64_t B = 2, L = 70, H = 3, P = 20;
  Rotation rotation{8};
  DType dtype = DType::f32;
  bool slice = false;            // of rows that hold more heads
  std::vector<int64_t> lengths;  // packed
  std::vector<double> start;     // a row each
};

void expect_matches(const Case& k) {
  TestContext test(true);
  Tensor x = test.random({k.B, k.L, k.slice ? k.H + 4 : k.H, k.P}, k.dtype, 1);
  if (k.slice) x = x.slice(2, 1, 1 + k.H);
  const auto S =
      static_cast<int64_t>(k.lengths.empty() ? static_cast<size_t>(k.B) : k.lengths.size());
  const Tensor start = k.start.empty() ? Tensor() : test.from(k.start, {S, 1}, DType::f32, false);
  Packing packing;
  std::vector<int64_t> position;
  const auto at = [&](int64_t row) {
    return k.start.empty() || row < 0 ? 0 : static_cast<int64_t>(k.start[static_cast<size_t>(row)]);
  };
  if (k.lengths.empty()) {
    for (int64_t i = 0; i < k.B * k.L; ++i) position.push_back(at(i / k.L) + i % k.L);
  } else {
    packing.n = S;
    packing.begin = test.tensor({S + 1}, DType::i64);
    packing.state_in = test.tensor({S}, DType::i32);
    set(packing.begin, 0, 0);
    for (int64_t s = 0; s < S; ++s) {
      const int64_t length = k.lengths[static_cast<size_t>(s)], row = s == 1 ? -1 : S - 1 - s;
      set(packing.begin, s + 1, get(packing.begin, s) + static_cast<double>(length));
      set(packing.state_in, s, static_cast<double>(row));
      for (int64_t i = 0; i < length; ++i) position.push_back(at(row) + i);
    }
  }
  const Tensor y = rotary(test.c, x, k.rotation, k.lengths.empty() ? nullptr : &packing, start);
  test.seed_grad(y, random_values(y.numel(), 11));
  const Values dy = to_double(test.tape.grad(y)), values = to_double(x);
  test.tape.backward(test.c);
  Values exact, plain, back;
  for (size_t i = 0; i < values.size(); i += static_cast<size_t>(k.P)) {
    const int64_t t = position[i / static_cast<size_t>(k.H * k.P)];
    const auto from = values.begin() + static_cast<std::ptrdiff_t>(i);
    const auto grad = dy.begin() + static_cast<std::ptrdiff_t>(i);
    for (double v : rotary_reference(Values(from, from + k.P), k.rotation, t)) exact.push_back(v);
    for (float v : rotary_reference(std::vector<float>(from, from + k.P), k.rotation, t))
      plain.push_back(static_cast<double>(v));
    // The transpose of a rotation turns back.
    for (double v : rotary_reference(Values(grad, grad + k.P), k.rotation, -t)) back.push_back(v);
  }
  expect_within_twice_plain(to_double(y), exact, plain, k.dtype, "y");
  expect_relative(to_double(test.tape.grad(x)), back, 4 * rounding(k.dtype), "dx");
}

TEST(Rotary, MatchesReference) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (bool interleaved : {false, true})
      for (int64_t R : {0, 2, 8, 18, 20}) {
        SCOPED_TRACE(fmt::format("{} interleaved={} R={}", name_of(dtype), interleaved, R));
        const Rotation r{R, 10000, interleaved};
        expect_matches({.rotation = r, .dtype = dtype});
        expect_matches({.rotation = r, .dtype = dtype, .slice = true, .start = {1000003, 5}});
      }
  for (int64_t L : {0, 1, 2, 63, 64, 65, 257}) expect_matches({.L = L, .start = {63, 0}});
  expect_matches({.P = 130, .rotation = {130, 500000}});
}

TEST(Rotary, SlowerTurnsMatchTheReference) {
  for (const RotaryScaling& s :
       {RotaryScaling{4}, RotaryScaling{8, 1, 4, 64}, RotaryScaling{3, 2, 2.5, 8192}})
    for (bool interleaved : {false, true}) {
      SCOPED_TRACE(fmt::format("factor {} interleaved {}", s.factor, interleaved));
      expect_matches({.rotation = {18, 10000, interleaved, s}, .start = {1000003, 5}});
    }
}

TEST(Rotary, MatchesReferenceInRunsOfWholeHeads) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (bool interleaved : {false, true})
      for (int64_t R : {0, 16, 32, 64}) {
        SCOPED_TRACE(fmt::format("{} interleaved={} R={}", name_of(dtype), interleaved, R));
        const Rotation r{R, 10000, interleaved};
        expect_matches({.P = 64, .rotation = r, .dtype = dtype});
        expect_matches({.P = 64, .rotation = r, .dtype = dtype, .slice = true, .start = {77, 5}});
        if (R < 64)
          expect_matches({.P = 72, .rotation = r, .dtype = dtype});  // an odd run is left over
      }
  // As many tokens as a block has several of, and some over.
  expect_matches({.L = 1025, .H = 1, .P = 16, .rotation = {16}, .dtype = DType::bf16});
}

TEST(Rotary, T25_PackedSequencesStartWhereTheirStateSays) {
  expect_matches({.lengths = {5, 0, 70, 1, 64}, .start = {9, 100, 63, 0, 64}});
  expect_matches({.lengths = {5, 70, 0, 65}});
}

TEST(Rotary, SameBitsForAnyNumberOfThreadsAndAnySplit) {
  TestContext test;
  const Tensor x = test.random({1, 300, 2, 16}, DType::f32, 1);
  const Rotation r{16};
  const Tensor whole = rotary(test.c, x, r);
  for (int n : {1, 2, 4}) {
    const ThreadCount scope(n);
    expect_same_bits(rotary(test.c, x, r), whole, "threads");
    for (int64_t cut : {1, 64, 130}) {
      const Tensor start = test.from({static_cast<double>(cut)}, {1, 1}, DType::f32, false);
      const Tensor rest = rotary(test.c, x.slice(1, cut, 300), r, nullptr, start);
      expect_same_bits(to_double(rest), to_double(whole.slice(1, cut, 300)), "from the middle");
    }
  }
}

TEST(Rotary, ErrorsSayWhatWasExpected) {
  TestContext test;
  const Tensor x = test.random({1, 2, 2, 16}, DType::f32, 1);
  expect_error([&] { rotary(test.c, x, {18}); },
               "[rotary] R: expected an even number of at most P=16");
  expect_error(
      [&] {
        rotary(test.c, x, {16, 10000, false, {8, 4, 1, 64}});
      },
      "[rotary] scaling: expected a factor above 0, and low below high");
}

}  // namespace
}  // namespace krait::ops
