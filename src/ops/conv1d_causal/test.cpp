#include "krait/ops/conv1d_causal/conv1d_causal.h"

#include "krait/ops/conv1d_causal/reference.h"
#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;

struct Case {
  int64_t B = 1, L = 1, E = 1, W = 4, K = 4;
  bool silu = true, bias = true, state_in = false, state_out = false;
  DType dtype = DType::f32;
  bool strided = false;
  std::vector<int64_t> lengths = {};  // packed, where not empty: they add up to B*L
  DType state = DType::f32;
};

std::string describe(const Case& k) {
  return fmt::format(
      "B={} L={} E={} W={} K={} silu={} bias={} state={}/{} {} {} strided={} packed={}", k.B, k.L,
      k.E, k.W, k.K, k.silu, k.bias, k.state_in, k.state_out, name_of(k.state), name_of(k.dtype),
      k.strided, k.lengths.size());
}

// The inputs of a case in a context, and its result. States of packed cases have one row more than there
// are sequences, in another order in than out; every third sequence starts from zero.
struct Conv {
  Case k;
  TestContext test;
  Tensor x, w, bias, state_in, state_out;
  Packing packing;
  std::vector<ConvSequence> sequences;
  ConvResult result;

  explicit Conv(const Case& c, bool record = false) : k(c), test(record) {
    x = test.random({k.B, k.L, k.E}, k.dtype, 1, {.strided = k.strided});
    w = test.random({k.E, k.W}, DType::f32, 2, {.scale = 0.5});
    if (k.bias) bias = test.random({k.E}, DType::f32, 3);
    const bool packed = !k.lengths.empty();
    const int64_t S = packed ? static_cast<int64_t>(k.lengths.size()) + 1 : k.B;
    if (k.state_in) state_in = test.random({S, k.E, k.K}, k.state, 4);
    if (k.state_out) state_out = test.tensor({S, k.E, k.K}, k.state);
    for (int64_t b = 0; b < k.B && !packed; ++b)
      sequences.push_back({b * k.L, (b + 1) * k.L, b, b});
    int64_t at = 0;
    for (int64_t s = 0; packed && s + 1 < S; ++s) {
      const int64_t length = k.lengths[static_cast<size_t>(s)];
      sequences.push_back({at, at + length, s % 3 == 2 ? -1 : S - 1 - s, s % 4 == 3 ? -1 : s});
      at += length;
      packing.longest = std::max(packing.longest, length);
    }
    if (packed) {
      packing.n = S - 1;
      packing.begin = test.tensor({S}, DType::i64);
      packing.state_in = test.tensor({S - 1}, DType::i32);
      packing.state_out = test.tensor({S - 1}, DType::i32);
      set(packing.begin, S - 1, static_cast<double>(at));
      for (int64_t s = 0; s + 1 < S; ++s) {
        const ConvSequence& seq = sequences[static_cast<size_t>(s)];
        set(packing.begin, s, static_cast<double>(seq.begin));
        set(packing.state_in, s, static_cast<double>(seq.in));
        set(packing.state_out, s, static_cast<double>(seq.out));
      }
    }
  }

  void run() {
    result = conv1d_causal(test.c, x, w, bias, k.silu, k.lengths.empty() ? nullptr : &packing,
                           state_in, state_out);
  }

  // y, then state_out with NaN where no sequence leaves its state.
  template <class T>
  std::vector<T> reference(const std::vector<T>& xv, const std::vector<T>& wv,
                           const std::vector<T>& bv, const std::vector<T>& sv) const {
    std::vector<T> state(state_out ? static_cast<size_t>(state_out.numel()) : 0, T(std::nan("")));
    std::vector<T> y =
        conv1d_causal_reference<T>(k.E, k.W, k.K, k.silu, sequences, xv, wv, bv, sv, state);
    y.insert(y.end(), state.begin(), state.end());
    return y;
  }
  Values exact() const {
    return reference(to_double(x), to_double(w), to_double(bias), to_double(state_in));
  }
  Values plain() const {
    return to_double(reference(to_float(x), to_float(w), to_float(bias), to_float(state_in)));
  }
  Values got() const {
    Values v = to_double(result.y);
    const Values s = to_double(result.state);
    v.insert(v.end(), s.begin(), s.end());
    return v;
  }
};

// Splits off what is NaN in `exact`, after checking that it is NaN (untouched) in `got` too.
void drop_untouched(Values& got, Values& exact, Values& plain) {
  ASSERT_EQ(got.size(), exact.size());
  size_t n = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    if (std::isnan(exact[i])) {
      EXPECT_TRUE(std::isnan(got[i])) << "a state row that no sequence names was written";
      continue;
    }
    got[n] = got[i];
    exact[n] = exact[i];
    plain[n++] = plain[i];
  }
  got.resize(n);
  exact.resize(n);
  plain.resize(n);
}

void expect_matches_reference(const Case& k) {
  SCOPED_TRACE(describe(k));
  Conv conv(k);
  conv.run();
  Values got = conv.got(), exact = conv.exact(), plain = conv.plain();
  drop_untouched(got, exact, plain);
  expect_within_twice_plain(got, exact, plain, k.dtype, "y and state_out");
}

TEST(Conv1dCausal, MatchesDoubleAtEverySize) {
  for (int64_t L : {0, 1, 2, 3, 31, 97, 257})
    for (int64_t E : {1, 2, 31, 97})
      expect_matches_reference({.B = 2, .L = L, .E = E, .state_in = true, .state_out = true});
  for (int64_t E : {257, 1025})
    expect_matches_reference({.B = 1, .L = 31, .E = E, .strided = true});
  expect_matches_reference({.B = 2, .L = 1025, .E = 31, .state_out = true, .strided = true});
}

TEST(Conv1dCausal, MatchesDoubleAtEveryWidth) {
  for (int64_t W = 2; W <= 8; ++W)
    for (int64_t K : {W - 1, W, W + 3})
      for (int64_t L : {1, 2, 7, 40})
        expect_matches_reference({.B = 3,
                                  .L = L,
                                  .E = 37,
                                  .W = W,
                                  .K = K,
                                  .silu = W % 2 == 0,
                                  .bias = W % 3 != 0,
                                  .state_in = true,
                                  .state_out = true,
                                  .strided = W > 4});
}

TEST(Conv1dCausal, MatchesDoubleInBfloat16) {
  for (int64_t L : {1, 2, 31, 257})
    expect_matches_reference({.B = 2,
                              .L = L,
                              .E = 97,
                              .state_in = true,
                              .state_out = true,
                              .dtype = DType::bf16,
                              .strided = true});
}

// A state of x's type in place of a float32 one of the same values: the same bits.
void expect_same_with_narrow_states(Case k) {
  SCOPED_TRACE(describe(k));
  k.dtype = k.state = DType::bf16;
  Conv narrow(k);
  k.state = DType::f32;
  Conv wide(k);
  if (k.state_in) copy_host(narrow.state_in, wide.state_in);
  for (Conv* conv : {&narrow, &wide}) conv->run();
  Values got = narrow.got(), expected = wide.got(), plain = expected;
  drop_untouched(got, expected, plain);
  expect_same_bits(got, expected, "y and state_out");
}

TEST(Conv1dCausal, StatesInBfloat16AreAsExact) {
  for (int64_t W = 2; W <= 8; ++W)
    for (int64_t K : {W - 1, W, W + 3})
      for (int64_t L : {1, 2, 7, 40})
        expect_same_with_narrow_states(
            {.B = 3, .L = L, .E = 37, .W = W, .K = K, .state_in = true, .state_out = true});
  expect_same_with_narrow_states({.B = 2, .L = 3, .E = 600, .state_in = true, .strided = true});
  expect_same_with_narrow_states({.B = 2, .L = 3, .E = 64, .state_out = true});
  Case packed{.B = 4, .L = 30, .E = 130, .state_in = true, .state_out = true};
  packed.lengths = {1, 0, 2, 64, 3, 1, 40, 0, 9};
  expect_same_with_narrow_states(packed);
  packed.lengths.assign(120, 1);
  expect_same_with_narrow_states(packed);
}

TEST(Conv1dCausal, T25_PackedSequencesDoNotLeak) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    expect_matches_reference({.B = 1,
                              .L = 120,
                              .E = 33,
                              .state_in = true,
                              .state_out = true,
                              .dtype = dtype,
                              .strided = true,
                              .lengths = {1, 0, 2, 64, 3, 1, 40, 0, 9}});
    expect_matches_reference(
        {.B = 2, .L = 60, .E = 33, .state_out = true, .dtype = dtype, .lengths = {61, 3, 56}});
    for (const int64_t E : {33, 64})
      for (const int64_t L : {2, 300})
        expect_matches_reference({.B = 1,
                                  .L = L,
                                  .E = E,
                                  .state_in = true,
                                  .state_out = true,
                                  .dtype = dtype,
                                  .lengths = {L}});
  }
  expect_matches_reference(
      {.B = 5, .L = 1, .E = 130, .state_in = true, .state_out = true, .lengths = {1, 1, 1, 1, 1}});
  expect_matches_reference(
      {.B = 2, .L = 1, .E = 130, .state_in = true, .state_out = true, .lengths = {0, 1, 0, 1, 0}});
}

// Random sizes of everything at once.
TEST(Conv1dCausal, T21_RandomPackings) {
  const Philox rng{7, 21};
  for (uint64_t i = 0; i < 60; ++i) {
    uint64_t at = i * 64;
    const auto pick = [&] { return rng.words(at++)[0]; };
    Case k{.E = 1 + pick() % 70,
           .W = 2 + pick() % 7,
           .silu = pick() % 2 == 0,
           .bias = pick() % 2 == 0,
           .state_in = pick() % 3 != 0,
           .state_out = pick() % 3 != 0,
           .dtype = pick() % 2 ? DType::bf16 : DType::f32,
           .strided = pick() % 2 == 0};
    k.K = k.W - 1 + pick() % 3;
    k.L = 0;
    for (uint32_t n = 1 + pick() % 12; n > 0; --n) {
      k.lengths.push_back(pick() % 4 == 0 ? pick() % 130 : pick() % 5);
      k.L += k.lengths.back();
    }
    expect_matches_reference(k);
  }
}

// Gradients of sum(cotangent * (y, state_out)) for the inputs named in `wanted` ("xwbs").
std::vector<Values> gradients(Conv& conv, const std::string& wanted) {
  const auto drop = [&](Tensor& t, char name) {
    if (wanted.find(name) == std::string::npos) t = t.detach();
  };
  drop(conv.x, 'x');
  drop(conv.w, 'w');
  drop(conv.bias, 'b');
  drop(conv.state_in, 's');
  conv.run();
  Context& c = conv.test.c;
  conv.test.seed_grad(conv.result.y, random_values(conv.result.y.numel(), 11));
  if (conv.result.state)
    conv.test.seed_grad(conv.result.state, random_values(conv.result.state.numel(), 12));
  conv.test.tape.backward(c);
  std::vector<Values> all;
  for (const Tensor* t : {&conv.x, &conv.w, &conv.bias, &conv.state_in})
    all.push_back(to_double(conv.test.tape.grad(*t)));
  return all;
}

// Against the complex step, element by element of each input, each alone and all together.
void expect_gradients(const Case& k) {
  SCOPED_TRACE(describe(k));
  Conv shape(k);
  const Values inputs[] = {to_double(shape.x), to_double(shape.w), to_double(shape.bias),
                           to_double(shape.state_in)};
  Values cotangent = random_values(static_cast<int64_t>(inputs[0].size()), 11);
  const Values more = random_values(shape.state_out ? shape.state_out.numel() : 0, 12);
  cotangent.insert(cotangent.end(), more.begin(), more.end());
  std::vector<Values> exact;
  for (size_t which = 0; which < 4; ++which) {
    exact.push_back(complex_step_gradient(
        [&](const ComplexValues& z) {
          ComplexValues in[4];
          for (size_t i = 0; i < 4; ++i) in[i] = i == which ? z : to_complex(inputs[i]);
          ComplexValues out = shape.reference(in[0], in[1], in[2], in[3]);
          for (Complex& v : out)
            if (std::isnan(v.real())) v = 0;
          return dot(out, cotangent);
        },
        inputs[which]));
  }
  // dk and dbias sum over all tokens in float32, dx over W of them; bfloat16 rounds dx, which is read
  // from a rounded dy.
  const double tolerance = k.dtype == DType::bf16 ? 4 * rounding(DType::bf16) : 3e-6;
  for (const std::string wanted : {"x", "w", "b", "s", "xwbs"}) {
    if ((wanted == "b" && !k.bias) || (wanted == "s" && !k.state_in)) continue;
    Conv conv(k, true);
    const std::vector<Values> got = gradients(conv, wanted);
    for (size_t i = 0; i < 4; ++i) {
      if (wanted.find("xwbs"[i]) == std::string::npos) {
        EXPECT_TRUE(got[i].empty());
      } else {
        expect_relative(got[i], exact[i], tolerance,
                        fmt::format("gradient {} of {}", "xwbs"[i], wanted));
      }
    }
  }
}

TEST(Conv1dCausalGradient, OfEveryInput) {
  expect_gradients({.B = 2, .L = 23, .E = 19, .state_in = true, .state_out = true});
  expect_gradients({.B = 2,
                    .L = 23,
                    .E = 5,
                    .silu = false,
                    .state_in = true,
                    .state_out = true,
                    .strided = true});
  for (int64_t W : {2, 3, 5, 8})
    expect_gradients(
        {.B = 1, .L = 21, .E = 6, .W = W, .K = W - 1, .state_in = true, .state_out = true});
  expect_gradients({.B = 1, .L = 12, .E = 4, .K = 7, .state_in = true, .state_out = true});
  expect_gradients(
      {.B = 1, .L = 20, .E = 18, .state_in = true, .dtype = DType::bf16, .strided = true});
}

// Neighbouring channels together, in slices of backward (32 tokens) that begin within a sequence or behind another.
TEST(Conv1dCausalGradient, OfRunsOfChannelsInSlicesAtEveryWidth) {
  for (int64_t W = 2; W <= 8; ++W)
    for (const DType dtype : {DType::f32, DType::bf16})
      expect_gradients({.B = 2, .L = 45, .E = 4, .W = W, .K = W, .dtype = dtype});
}

TEST(Conv1dCausalGradient, T38_WithoutBiasAndWithoutStates) {
  expect_gradients({.B = 2, .L = 20, .E = 5, .bias = false});
  expect_gradients({.B = 2, .L = 20, .E = 5, .bias = false, .state_out = true});
}

TEST(Conv1dCausalGradient, T16_SequencesShorterThanTheWindow) {
  for (int64_t L : {1, 2, 3})
    for (int64_t K : {3, 4, 6})
      expect_gradients({.B = 2, .L = L, .E = 5, .K = K, .state_in = true, .state_out = true});
  expect_gradients({.B = 1, .L = 4, .E = 3, .W = 8, .K = 8, .state_in = true, .state_out = true});
}

TEST(Conv1dCausalGradient, T16_PackedInABatch) {
  expect_gradients({.B = 2,
                    .L = 15,
                    .E = 5,
                    .state_in = true,
                    .state_out = true,
                    .strided = true,
                    .lengths = {1, 0, 13, 2, 3, 11}});
}

// Borders of the pieces of backward (256 tokens): close before and after the start of a sequence.
TEST(Conv1dCausalGradient, T14_AcrossPieces) {
  for (int64_t first : {253, 255, 256, 258})
    expect_gradients({.B = 1,
                      .L = 280,
                      .E = 1,
                      .state_in = true,
                      .state_out = true,
                      .lengths = {first, 280 - first}});
  expect_gradients({.B = 1, .L = 259, .E = 1, .W = 8, .K = 8, .state_in = true, .state_out = true});
}

// x is the first half of a wider tensor whose other half has a gradient already: added to, not cleared.
TEST(Conv1dCausalGradient, AddsToWhatIsThere) {
  Conv once({.L = 9, .E = 5}, true), twice({.L = 9, .E = 5}, true);
  const std::vector<Values> one = gradients(once, "xwbs");
  twice.run();
  twice.test.seed_grad(twice.result.y, random_values(twice.result.y.numel(), 11));
  twice.run();
  twice.test.seed_grad(twice.result.y, random_values(twice.result.y.numel(), 11));
  twice.test.tape.backward(twice.test.c);
  const Tensor* inputs[] = {&twice.x, &twice.w, &twice.bias};
  for (size_t i = 0; i < 3; ++i) {
    Values doubled = one[i];
    for (double& v : doubled) v *= 2;
    expect_relative(to_double(twice.test.tape.grad(*inputs[i])), doubled, 2e-7,
                    "twice the gradient");
  }
}

TEST(Conv1dCausal, SameBitsForAnyNumberOfThreadsAndTwice) {
  for (const Case& k : {Case{.B = 2, .L = 700, .E = 97, .state_in = true, .state_out = true},
                        Case{.B = 1,
                        .L = 600,
                        .E = 70,
                        .state_in = true,
                        .state_out = true,
                        .dtype = DType::bf16,
                        .lengths = {300, 1, 2, 257, 40}}}) {
    std::vector<Values> first;
    for (int n : {1, 1, 2, 4}) {
      const ThreadCount scope(n);
      Conv conv(k, true);
      std::vector<Values> all = gradients(conv, "xwbs");
      all.push_back(to_double(conv.result.y));
      Values state = to_double(conv.result.state);
      for (double& v : state)
        if (std::isnan(v)) v = 0;
      all.push_back(state);
      if (first.empty()) first = all;
      for (size_t i = 0; i < all.size(); ++i)
        expect_same_bits(all[i], first[i], fmt::format("{} threads, {}", n, i));
    }
  }
}

// As sessions hand a prompt to it: a packing of one sequence.
Packing one_sequence(TestContext& test, int64_t tokens) {
  Packing p{.n = 1,
            .longest = tokens,
            .begin = test.tensor({2}, DType::i64),
            .state_in = test.tensor({1}, DType::i32),
            .state_out = test.tensor({1}, DType::i32)};
  set(p.begin, 0, 0);
  set(p.begin, 1, static_cast<double>(tokens));
  set(p.state_in, 0, 0);
  set(p.state_out, 0, 0);
  return p;
}

// Whole = pieces of any length handed from state to state = steps, bit for bit.
TEST(Conv1dCausal, T20_ChunksAndStepsEqualTheWhole) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    for (int64_t K : {3, 4, 6}) {
      Case k{.L = 90, .E = 67, .K = K, .state_in = true, .state_out = true, .dtype = dtype};
      k.B = K == 4 ? 1 : 3;
      k.state = K == 6 ? DType::f32 : dtype;
      Conv whole(k);
      whole.run();
      for (const std::vector<int64_t>& lengths :
           {std::vector<int64_t>{1, 2, 3, 30, 54}, std::vector<int64_t>(90, 1),
            std::vector<int64_t>{89, 1}}) {
        Conv parts(k);
        Tensor state = parts.test.tensor(parts.state_in.shape, k.state);
        copy_host(parts.state_in, state);
        Values y(static_cast<size_t>(parts.x.numel()));
        int64_t at = 0;
        for (int64_t length : lengths) {
          const Tensor x = parts.test.tensor({k.B, length, k.E}, dtype);
          copy_host(parts.x.slice(1, at, at + length), x);
          const Packing alone = one_sequence(parts.test, length);
          const Tensor piece = conv1d_causal(parts.test.c, x, parts.w, parts.bias, true,
                                             k.B == 1 ? &alone : nullptr, state, state)
                                   .y;
          for (int64_t i = 0; i < piece.numel(); ++i) {
            const int64_t b = i / (length * k.E), within = i % (length * k.E);
            y[static_cast<size_t>((b * k.L + at) * k.E + within)] = get(piece, i);
          }
          at += length;
        }
        expect_same_bits(y, to_double(whole.result.y), "y");
        expect_same_bits(to_double(state), to_double(whole.result.state), "state in place");
      }
    }
  }
}

TEST(Conv1dCausal, T17_StateHoldsInputsBeforeTheConvolution) {
  Conv conv({.B = 1, .L = 6, .E = 3, .state_out = true});
  conv.run();
  for (int64_t e = 0; e < 3; ++e)
    for (int64_t j = 0; j < 4; ++j)
      EXPECT_EQ(get(conv.result.state, e * 4 + j), get(conv.x, (2 + j) * 3 + e));
}

TEST(Conv1dCausal, T17_ShortSequenceKeepsTheNewerPartOfItsState) {
  Conv conv({.B = 1, .L = 1, .E = 2, .state_in = true, .state_out = true});
  conv.run();
  for (int64_t e = 0; e < 2; ++e) {
    for (int64_t j = 0; j < 3; ++j)
      EXPECT_EQ(get(conv.result.state, e * 4 + j), get(conv.state_in, e * 4 + j + 1));
    EXPECT_EQ(get(conv.result.state, e * 4 + 3), get(conv.x, e));
  }
}

// The first output sees the first token alone, through the last tap.
TEST(Conv1dCausal, T18_LooksBackOnly) {
  Conv conv({.B = 1, .L = 8, .E = 1, .silu = false, .bias = false});
  conv.run();
  EXPECT_FLOAT_EQ(static_cast<float>(get(conv.result.y, 0)),
                  static_cast<float>(get(conv.w, 3) * get(conv.x, 0)));
  Conv changed({.B = 1, .L = 8, .E = 1, .silu = false, .bias = false});
  set(changed.x, 7, 1e6);
  changed.run();
  for (int64_t t = 0; t < 7; ++t) EXPECT_EQ(get(changed.result.y, t), get(conv.result.y, t));
}

// A state row that no sequence starts from may hold anything.
TEST(Conv1dCausal, T26_StateOfOthersDoesNotPoison) {
  Conv conv({.B = 1, .L = 9, .E = 5, .state_in = true, .state_out = true, .lengths = {4, 2, 3}});
  // Sequence 2 starts from zero; the rows 2 and 3 are read by sequences 1 and 0.
  for (int64_t row : {0, 1})
    for (int64_t i = 0; i < 20; ++i) set(conv.state_in, row * 20 + i, std::nan(""));
  conv.run();
  for (double v : to_double(conv.result.y)) EXPECT_FALSE(std::isnan(v));
}

// A row distance of 2^31 bytes and more in a batch.
TEST(Conv1dCausal, T15_OffsetsOf64Bits) {
  KRAIT_ONLY_ON_CPU("reads memory that was never touched");
  constexpr int64_t kFar = (int64_t{1} << 31) / 4 + 16;
  Arena huge(3 * kFar * sizeof(float));
  Tensor x(huge.take_low(2 * kFar * sizeof(float)), DType::f32, {1, 2, kFar});
  x = x.slice(2, 0, 5);
  TestContext test;
  for (int64_t i = 0; i < 10; ++i) set(x, i, static_cast<double>(i) * 0.1);
  Tensor dense = test.tensor({1, 2, 5}, DType::f32);
  copy_host(x, dense);
  const Tensor k = test.random({5, 4}, DType::f32, 1);
  expect_same_bits(conv1d_causal(test.c, x, k, {}, true).y,
                   conv1d_causal(test.c, dense, k, {}, true).y, "y");
}

TEST(Conv1dCausal, ErrorsSayWhatWasExpected) {
  Conv a({.B = 2, .L = 3, .E = 5, .state_in = true, .state_out = true});
  Context& c = a.test.c;
  expect_error(
      [&] {
        conv1d_causal(c, a.x, a.test.tensor({4, 4}, DType::f32), a.bias, true);
      },
      "[conv1d_causal] k: expected contiguous float32 (E=5, W) with W from 2 to 8, got float32 (4, "
      "4)");
  expect_error(
      [&] {
        conv1d_causal(c, a.x, a.test.tensor({5, 9}, DType::f32), a.bias, true);
      },
      "got float32 (5, 9)");
  expect_error([&] { conv1d_causal(c, a.w, a.w, a.bias, true); },
               "x: expected float32 or bfloat16 (B, L, E)");
  expect_error([&] { conv1d_causal(c, a.x, a.w, a.test.tensor({4}, DType::f32), true); },
               "bias: expected contiguous float32 (5,), got float32 (4,)");
  expect_error(
      [&] {
        conv1d_causal(c, a.x, a.w, {}, true, nullptr, a.test.tensor({2, 5, 2}, DType::f32));
      },
      "state_in: expected contiguous float32 (S, E=5, K>=3)");
  expect_error(
      [&] {
        conv1d_causal(c, a.x, a.w, {}, true, nullptr, a.test.tensor({3, 5, 4}, DType::f32));
      },
      "state_in: expected 2 rows, one a sequence, got 3");
  expect_error(
      [&] {
        conv1d_causal(c, a.x, a.w, {}, true, nullptr, a.state_in,
                      a.test.tensor({2, 5, 3}, DType::f32));
      },
      "state_out: expected");
  expect_error(
      [&] {
        conv1d_causal(c, a.x, a.w, {}, true, nullptr, a.test.tensor({2, 5, 4}, DType::bf16));
      },
      "state_in: expected contiguous float32 (S, E=5, K>=3), the same K for both states, got "
      "bfloat16 (2, 5, 4)");
  Conv n({.B = 1, .L = 6, .E = 5, .state_in = true, .dtype = DType::bf16, .state = DType::bf16},
         true);
  expect_error([&] { n.run(); },
               "states: expected float32 while recording for backward, got bfloat16");
  n.state_out = n.test.tensor({1, 5, 4}, DType::f32);
  expect_error([&] { n.run(); }, "state_out: expected the type of state_in, bfloat16, got float32");
  Conv r({.B = 1, .L = 6, .E = 5, .state_in = true}, true);
  expect_error(
      [&] { conv1d_causal(r.test.c, r.x, r.w, {}, true, nullptr, r.state_in, r.state_in); },
      "memory of its own while recording");
}

TEST(Conv1dCausal, ErrorsNameTheSequence) {
  KRAIT_ONLY_ON_CPU("values on a GPU are not looked at");
  Conv p({.B = 1, .L = 6, .E = 5, .state_in = true, .state_out = true, .lengths = {4, 2}});
  expect_error(
      [&] { conv1d_causal(p.test.c, p.x, p.w, {}, true, &p.packing, p.state_in, p.state_in); },
      "inside one state tensor");
  set(p.packing.begin, 2, 5);
  expect_error([&] { p.run(); }, "packing: expected to cover tokens 0 to 6, covers 0 to 5");
  set(p.packing.begin, 2, 6);
  set(p.packing.state_in, 0, 3);
  expect_error([&] { p.run(); }, "names state rows 3 and 0");
}

}  // namespace
}  // namespace krait::ops
