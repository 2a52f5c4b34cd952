// attention against the double reference: values, caches, and gradients of every input.
#include <gtest/gtest.h>

#include "krait/ops/attention/fixture.h"
#include "krait/testing/cases.h"

namespace krait::ops {
namespace {

using testing::Complex;
using testing::ComplexValues;
using testing::Errors;
using testing::expect_error;
using testing::Values;

std::vector<AttentionCase> cases() {
  std::vector<AttentionCase> all;
  const auto add = testing::adder(all);
  for (int64_t L : {0, 1, 2, 31, 64, 65, 129, 257, 300})
    add(fmt::format("L{}", L), [&](AttentionCase& k) { k.L = L, k.B = 2; });
  for (int64_t P : {1, 2, 10, 17, 64, 80, 256})
    add(fmt::format("P{}", P), [&](AttentionCase& k) { k.P = P, k.L = 70; });
  add("shared_heads", [](AttentionCase& k) { k.H = 6, k.Hkv = 2, k.L = 150, k.B = 2; });
  add("one_key_head", [](AttentionCase& k) { k.H = 5, k.Hkv = 1, k.L = 130; });
  add("full", [](AttentionCase& k) { k.causal = false, k.L = 130, k.B = 2; });
  add("full_packed", [](AttentionCase& k) { k.causal = false, k.lengths = {5, 0, 70, 22}; });
  for (int64_t w : {1, 5, 64, 100})
    add(fmt::format("window{}", w), [&](AttentionCase& k) { k.window = w, k.L = 200; });
  add("one_row_of_q_k_v", [](AttentionCase& k) {
    k.layout = AttentionCase::rows, k.B = 3, k.L = 70, k.H = 4, k.P = 12;
  });
  add("interleaved_q_k_v",
      [](AttentionCase& k) { k.layout = AttentionCase::interleaved, k.B = 2, k.L = 70, k.P = 20; });
  add("T25_packed", [](AttentionCase& k) {
    k.B = 3, k.L = 100, k.H = 4, k.lengths = {5, 0, 130, 1, 63, 1, 0, 8, 64, 28};
  });
  add("packed_caches", [](AttentionCase& k) {
    k.L = 180, k.H = 4, k.P = 12, k.C = 100, k.C_out = 240, k.lengths = {40, 70, 0, 1, 69};
    k.cached = {100, 9, 0, 65, 3};
  });
  for (int64_t L : {1, 2, 7, 65})
    add(fmt::format("cache_L{}", L), [&](AttentionCase& k) {
      k.B = 3, k.L = L, k.H = 4, k.Hkv = 2, k.P = 20, k.C = 1100, k.C_out = 1200;
      k.cached = {1050, 0, 64};
    });
  add("cache_out_alone", [](AttentionCase& k) { k.C_out = 97, k.H = 4; });
  add("cache_in_alone", [](AttentionCase& k) { k.C = 50, k.cached = {50}; });
  add("steps_packed", [](AttentionCase& k) {
    k.L = 4, k.C = 20, k.C_out = 20, k.lengths = {1, 1, 0, 1, 1}, k.cached = {5, 7, 9, 0, 1};
  });
  for (int64_t L : {1, 3, 40})
    add(fmt::format("ring_L{}", L), [&](AttentionCase& k) {
      k.B = 4, k.L = L, k.window = 30, k.C = k.C_out = 30, k.cached = {100, 12, 30, 60};
    });
  add("ring_larger_than_window", [](AttentionCase& k) {
    k.B = 2, k.L = 20, k.window = 9, k.C = 16, k.C_out = 11, k.cached = {33, 3};
  });
  add("scores_far_apart", [](AttentionCase& k) { k.size = 12, k.L = 150; });
  for (int64_t L : {1, 150})
    add(fmt::format("bf16_L{}", L), [&](AttentionCase& k) {
      k.dtype = DType::bf16, k.L = L, k.layout = AttentionCase::rows, k.H = 4, k.Hkv = 2, k.P = 24;
      k.C = 70, k.C_out = 220, k.cached = {70};
    });
  for (int64_t P : {8, 64, 80, 96, 128})
    add(fmt::format("bf16_P{}", P), [&](AttentionCase& k) {
      k.dtype = DType::bf16, k.L = 150, k.B = 2, k.H = 4, k.Hkv = 2, k.P = P;
    });
  add("bf16_packed_caches", [](AttentionCase& k) {
    k.dtype = DType::bf16, k.L = 260, k.H = 4, k.Hkv = 2, k.P = 16, k.C = 100, k.C_out = 340;
    k.lengths = {40, 70, 0, 1, 149}, k.cached = {100, 9, 0, 65, 3};
  });
  add("bf16_full",
      [](AttentionCase& k) { k.dtype = DType::bf16, k.causal = false, k.L = 140, k.P = 32; });
  add("bf16_window",
      [](AttentionCase& k) { k.dtype = DType::bf16, k.window = 70, k.L = 200, k.P = 32; });
  add("bf16_ring", [](AttentionCase& k) {
    k.dtype = DType::bf16, k.B = 4, k.L = 150, k.P = 32;
    k.window = 30, k.C = k.C_out = 30, k.cached = {100, 12, 30, 60};
  });
  // Tiles of 192, 128 and 64 queries and of 128 keys, on warpgroups of a GPU.
  for (int64_t P : {64, 128})
    for (int64_t L : {128, 191, 193, 257, 400})
      add(fmt::format("bf16_P{}_L{}", P, L),
          [&](AttentionCase& k) { k.dtype = DType::bf16, k.L = L, k.H = 2, k.Hkv = 1, k.P = P; });
  for (int64_t P : {56, 64, 112, 128}) {
    const auto add_of = [&](const std::string& name, auto change) {
      add(fmt::format("bf16_P{}_{}", P, name), [&](AttentionCase& k) {
        k.dtype = DType::bf16, k.L = 300, k.P = P;
        change(k);
      });
    };
    add_of("one_token", [](AttentionCase& k) { k.L = 1; });
    add_of("full", [](AttentionCase& k) { k.causal = false; });
    add_of("full_packed", [](AttentionCase& k) { k.causal = false, k.lengths = {130, 1, 0, 169}; });
    for (int64_t w : {1, 100, 129, 200})
      add_of(fmt::format("window{}", w), [&](AttentionCase& k) { k.window = w; });
    add_of("packed", [](AttentionCase& k) { k.H = 4, k.lengths = {5, 0, 130, 1, 63, 1, 0, 100}; });
    add_of("rows", [](AttentionCase& k) { k.layout = AttentionCase::rows, k.B = 2, k.H = 4; });
    add_of("interleaved", [](AttentionCase& k) { k.layout = AttentionCase::interleaved; });
    add_of("one_key_head", [](AttentionCase& k) { k.H = 3, k.Hkv = 1; });
    add_of("cache", [](AttentionCase& k) {
      k.B = 3, k.L = 200, k.C = 300, k.C_out = 500, k.cached = {300, 0, 129};
    });
    add_of("cache_out", [](AttentionCase& k) { k.C_out = 310; });
    // More tiles of queries than a GPU has multiprocessors.
    add_of("many", [](AttentionCase& k) { k.B = 8, k.L = 70, k.H = 24; });
    add_of("ring", [](AttentionCase& k) {
      k.B = 3, k.window = 150, k.C = k.C_out = 160, k.cached = {500, 12, 160};
    });
  }
  // Tiles of 128 cached keys end where a sequence's own begin, and where the ring does.
  for (int64_t P : {56, 64, 128}) {
    const auto add_of = [&](const std::string& name, auto change) {
      add(fmt::format("bf16_caches_P{}_{}", P, name), [&](AttentionCase& k) {
        k.dtype = k.cache = DType::bf16, k.P = P, k.H = 4;
        change(k);
        k.C_out = k.window > 0 ? k.window : 0;
      });
    };
    for (int64_t L : {2, 65, 200})
      add_of(fmt::format("L{}", L), [&](AttentionCase& k) {
        k.B = 3, k.L = L, k.C = 700, k.cached = {513, 0, 127};
      });
    add_of("ring", [](AttentionCase& k) {
      k.B = 4, k.window = 300, k.C = 333, k.cached = {999, 1000, 1, 998};
    });
    add_of("ring_of_a_window", [](AttentionCase& k) {
      k.B = 2, k.L = 300, k.window = k.C = 200, k.cached = {777, 400};
    });
    add_of("packed", [](AttentionCase& k) {
      k.L = 260, k.C = 140, k.lengths = {40, 70, 0, 1, 149}, k.cached = {140, 9, 0, 65, 131};
    });
    add_of("many", [](AttentionCase& k) {
      k.B = 8, k.L = 30, k.H = 24, k.C = 300;
      k.cached = {300, 0, 129, 7, 128, 1, 200, 255};
    });
    add_of("packed_rings", [](AttentionCase& k) {
      k.L = 260, k.window = 90, k.C = 100, k.lengths = {40, 70, 0, 1, 149};
      k.cached = {100, 900, 0, 65, 313};
    });
  }
  add("bf16_scores_far_apart",
      [](AttentionCase& k) { k.dtype = DType::bf16, k.size = 6, k.L = 400, k.P = 64; });
  add("bf16_large_heads", [](AttentionCase& k) { k.dtype = DType::bf16, k.L = 70, k.P = 200; });
  return all;
}

class Attention : public ::testing::TestWithParam<AttentionCase> {};

// Values, caches and all gradients from random cotangents on all results, with and without a tape. Errors of
// a handful of elements are a matter of luck: small cases are tried several times, and the worst error is held
// against twice the worst error of the plain runs, with a few roundings of the largest value beside it.
TEST_P(Attention, MatchesReference) {
  AttentionCase k = GetParam();
  Errors y_error;
  double cancels = 0;  // the size of the terms that gradients of scores are differences of
  std::vector<Errors> errors(std::size(kAttentionInputNames));
  const int64_t trials = std::clamp<int64_t>(2048 / (k.L * k.H * k.P + 1), 1, 8);
  const bool recorded = k.cache == DType::f32;
  for (int64_t trial = 0; trial < trials; ++trial) {
    k.seed = static_cast<uint64_t>(trial);
    const AttentionOutcome got = run_attention(k, recorded);
    if (recorded)
      testing::expect_same_bits(run_attention(k, false).y, got.y, "recorded and unrecorded");
    testing::TestContext t(false, 64);
    const AttentionSetup setup(t, k);
    const auto exact = setup.reference<double>(k);
    const auto plain = setup.reference<float>(k);
    const auto y = exact.forward();
    y_error.add(got.y, y.y, testing::to_double(plain.forward().y));
    testing::expect_same_bits(got.cache_k, y.cache_k, "keys of the cache");
    testing::expect_same_bits(got.cache_v, y.cache_v, "values of the cache");
    for (size_t s = 0; s < y.length.size(); ++s)
      EXPECT_TRUE(std::isnan(got.length[s]) || got.length[s] == y.length[s]) << s;
    if (!recorded) continue;
    cancels = std::max(cancels, testing::max_abs(got.dy) * testing::max_abs(exact.v) *
                                    std::max(testing::max_abs(exact.k), testing::max_abs(exact.q)));
    auto g = exact.backward(got.dy, got.dk_out, got.dv_out);
    const auto floats = [](const Values& v) { return std::vector<float>(v.begin(), v.end()); };
    auto g_plain = plain.backward(floats(got.dy), floats(got.dk_out), floats(got.dv_out));
    for (size_t i = 0; i < errors.size(); ++i)
      errors[i].add(got.grads[i], *fields(g)[i], testing::to_double(*fields(g_plain)[i]));
  }
  const auto check = [](const std::string& what, const Errors& e, DType dtype, double terms = 0) {
    // A gradient in bfloat16 that several pieces are added to is rounded with each; dy · y has y rounded.
    const double own = dtype == DType::f32 ? 0 : 2 * testing::rounding(dtype);
    EXPECT_LE(e.got, 2 * e.plain + own * e.largest +
                         4 * testing::rounding(DType::f32) * std::max(e.largest, terms))
        << what << ": error of the plain float32 run " << e.plain << ", largest value "
        << e.largest;
  };
  check("y", y_error, k.dtype);
  if (!recorded) return;
  // On a GPU the weights of cached values follow from keys that were rounded to bfloat16.
  const size_t in_dtype = testing::test_device().type == Device::cpu ? 4 : 5;
  for (size_t i = 0; i < errors.size(); ++i)
    check(std::string("d ") + kAttentionInputNames[i], errors[i],
          i < in_dtype ? k.dtype : DType::f32, i == 0 || i == 1 || i == 3 ? cancels : 0);
}

INSTANTIATE_TEST_SUITE_P(Cases, Attention, ::testing::ValuesIn(cases()),
                         [](const auto& the_case) { return the_case.param.name; });

// The adjoint of the reference, which the table above trusts, against the complex step of its forward pass:
// every element of every input.
TEST(AttentionReference, AdjointIsTheComplexStep) {
  std::vector<AttentionCase> few(3);
  few[0].H = 4, few[0].Hkv = 2, few[0].P = 3, few[0].L = 5, few[0].C = 4, few[0].C_out = 9,
  few[0].cached = {3};
  few[1].L = 6, few[1].P = 2, few[1].C = few[1].C_out = 3, few[1].window = 3,
  few[1].cached = {7, 1, 0, 3}, few[1].lengths = {2, 1, 0, 3};
  few[2].L = 4, few[2].P = 2, few[2].causal = false, few[2].B = 2;
  for (const AttentionCase& k : few) {
    testing::TestContext t;
    const AttentionSetup setup(t, k);
    auto exact = setup.reference<double>(k);
    for (std::vector<double>* v : fields(exact)) *v = without_nan(*v);
    const auto y = exact.forward();
    const auto random = [](size_t n, uint64_t seed) {
      return testing::random_values(static_cast<int64_t>(n), seed);
    };
    const Values dy = random(y.y.size(), 20), dk = random(y.cache_k.size(), 21),
                 dv = random(y.cache_v.size(), 22);
    auto adjoint = exact.backward(dy, dk, dv);
    for (size_t i = 0; i < fields(adjoint).size(); ++i) {
      auto stepped = setup.reference<Complex>(k);
      for (size_t j = 0; j < fields(stepped).size(); ++j)
        *fields(stepped)[j] = testing::to_complex(*fields(exact)[j]);
      const auto loss = [&](const ComplexValues& x) {
        *fields(stepped)[i] = x;
        const auto r = stepped.forward();
        return testing::dot(r.y, dy) + testing::dot(r.cache_k, dk) + testing::dot(r.cache_v, dv);
      };
      const Values numeric = testing::complex_step_gradient(loss, *fields(exact)[i]);
      testing::expect_relative(*fields(adjoint)[i], numeric, 1e-12, kAttentionInputNames[i]);
    }
  }
}

TEST(Attention, SameBitsForAnyNumberOfThreadsAndTwice) {
  AttentionCase prompt, step;
  prompt.B = 2, prompt.L = 150, prompt.H = 4, prompt.Hkv = 2, prompt.C = 90, prompt.C_out = 250,
  prompt.cached = {90, 5};
  step.B = 2, step.L = 1, step.C = 1600, step.C_out = 1601, step.cached = {1600, 700};
  for (const AttentionCase& k : {prompt, step}) {
    std::vector<Values> first;
    for (int n : {1, 1, 2, 4}) {
      const testing::ThreadCount scope(n);
      const AttentionOutcome o = run_attention(k, true);
      std::vector<Values> all = o.grads;
      all.push_back(o.y);
      if (first.empty()) first = all;
      for (size_t i = 0; i < all.size(); ++i)
        testing::expect_same_bits(all[i], first[i], fmt::format("{} threads, {}", n, i));
    }
  }
}

// Inputs that two calls read get the gradients of both.
TEST(Attention, GradientsAddUp) {
  for (const int64_t P : {20, 64, 80, 128}) {
    AttentionCase k;
    k.dtype = DType::bf16, k.L = 200, k.H = 4, k.P = P;
    const std::vector<Values> once = run_attention(k, true).grads;
    testing::TestContext t(true, size_t{32} << 20);
    const AttentionSetup setup(t, k);
    for (const AttentionResult& r : {setup.run(t), setup.run(t)})
      t.seed_grad(r.y, testing::random_values(r.y.numel(), 20));
    t.tape.backward(t.c);
    for (size_t i = 0; i < 3; ++i) {
      Values twice = once[i];
      for (double& x : twice) x *= 2;
      testing::expect_relative(testing::to_double(t.tape.grad(setup.tensors()[i])), twice,
                               2 * testing::rounding(DType::bf16), kAttentionInputNames[i]);
    }
  }
}

// Whole = pieces of any length with a cache in place = steps.
TEST(Attention, T20_ChunksAndStepsEqualTheWhole) {
  for (int64_t window : {0, 40}) {
    AttentionCase k;
    k.B = 2, k.L = 150, k.H = 4, k.Hkv = 2, k.P = 20, k.window = window;
    testing::TestContext t;
    const AttentionSetup setup(t, k);
    const Values whole = testing::to_double(setup.run(t).y);
    for (const std::vector<int64_t>& lengths :
         {std::vector<int64_t>{1, 2, 3, 30, 114}, std::vector<int64_t>(150, 1)}) {
      const int64_t C = window > 0 ? window : k.L;
      KeyCache cache{t.tensor({k.B, C, k.Hkv * k.P}, DType::f32),
                     t.tensor({k.B, C, k.Hkv * k.P}, DType::f32), t.tensor({k.B, 1}, DType::f32)};
      for (int64_t b = 0; b < k.B; ++b) set(cache.length, b, 0);
      Values y(whole.size());
      int64_t at = 0;
      for (int64_t length : lengths) {
        AttentionInputs in = setup.in;
        for (Tensor* x : {&in.q, &in.k, &in.v}) {
          const Tensor part = t.tensor({k.B, length, x->size(2), k.P}, DType::f32);
          copy_host(x->slice(1, at, at + length), part);
          *x = part;
        }
        const Values piece = testing::to_double(attention(t.c, in, nullptr, cache, cache).y);
        const int64_t row = k.H * k.P;
        for (size_t i = 0; i < piece.size(); ++i) {
          const int64_t n = static_cast<int64_t>(i), b = n / (length * row);
          y[static_cast<size_t>((b * k.L + at) * row + n % (length * row))] = piece[i];
        }
        at += length;
      }
      testing::expect_relative(y, whole, 1e-6, "y");
      EXPECT_EQ(get(cache.length, 1), 150);
    }
  }
}

// A session that has read nothing may have a cache of no rows.
TEST(Attention, ACacheWithoutRoomIsNone) {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const int64_t L : {1, 70}) {
      AttentionCase k;
      k.B = 2, k.L = L, k.H = 4, k.Hkv = 2, k.P = 64, k.dtype = k.cache = dtype;
      testing::TestContext t;
      AttentionSetup setup(t, k);
      const Values alone = testing::to_double(setup.run(t).y);
      const Shape none{k.B, 0, k.Hkv * k.P};
      setup.from = {t.tensor(none, dtype), t.tensor(none, dtype), t.tensor({k.B, 1}, DType::f32)};
      for (int64_t b = 0; b < k.B; ++b) set(setup.from.length, b, 0);
      testing::expect_same_bits(testing::to_double(setup.run(t).y), alone, "y");
    }
}

// A cache in bfloat16 holds keys and values that are bfloat16 as exactly as one in float32.
TEST(Attention, Bfloat16CachesAreExact) {
  for (const int64_t P : {20, 64})
    for (const int64_t window : {0, 40}) {
      AttentionCase k;
      k.B = 2, k.L = 70, k.H = 4, k.Hkv = 2, k.P = P, k.window = window, k.dtype = DType::bf16;
      testing::TestContext t;
      const AttentionSetup setup(t, k);
      std::vector<Values> first;
      for (const DType dtype : {DType::f32, DType::bf16}) {
        const Shape rows{k.B, window > 0 ? window : k.L, k.Hkv * k.P};
        KeyCache cache{t.tensor(rows, dtype), t.tensor(rows, dtype),
                       t.tensor({k.B, 1}, DType::f32)};
        for (int64_t b = 0; b < k.B; ++b) set(cache.length, b, 0);
        std::vector<Values> all;
        for (int64_t at = 0; at < k.L;) {
          const int64_t length = at < 60 ? 30 : 1;
          AttentionInputs in = setup.in;
          for (Tensor* x : {&in.q, &in.k, &in.v}) {
            const Tensor part = t.tensor({k.B, length, x->size(2), k.P}, k.dtype);
            copy_host(x->slice(1, at, at + length), part);
            *x = part;
          }
          all.push_back(testing::to_double(attention(t.c, in, nullptr, cache, cache).y));
          at += length;
        }
        all.push_back(without_nan(testing::to_double(cache.k)));
        all.push_back(without_nan(testing::to_double(cache.v)));
        if (testing::test_device().type != Device::cpu)  // other kernels: the table compares them
          all.erase(all.begin(), all.end() - 2);
        if (first.empty()) first = all;
        for (size_t i = 0; i < all.size(); ++i)
          testing::expect_same_bits(all[i], first[i], fmt::format("{} of P={}", i, P));
      }
    }
}

// Its weight is 1 whatever the score: no gradient, not even a rounding error, which AdamW would make a step of.
TEST(Attention, ATokenThatSeesOneKeySaysNothingAboutTheScore) {
  if (testing::test_device().type != Device::cpu)
    GTEST_SKIP() << "tiles of products sum in another order than rows do";
  for (const DType dtype : {DType::f32, DType::bf16}) {
    AttentionCase k;
    k.dtype = dtype, k.B = 2, k.L = 70, k.P = 23, k.H = 6, k.Hkv = 2, k.window = 1;
    const std::vector<Values> grads = run_attention(k, true).grads;
    EXPECT_EQ(testing::max_abs(grads[0]), 0);
    EXPECT_EQ(testing::max_abs(grads[1]), 0);
    EXPECT_GT(testing::max_abs(grads[2]), 0);
  }
}

TEST(Attention, ErrorsSayWhatWasExpected) {
  AttentionCase k;
  k.B = 2, k.L = 3, k.H = 6, k.Hkv = 3, k.P = 8, k.C = k.C_out = 10, k.cached = {4, 7};
  testing::TestContext t;
  AttentionSetup s(t, k);
  if (testing::test_device().type == Device::cpu) {  // lengths are not known on a GPU's host
    set(s.from.length, 1, 8);
    expect_error([&] { s.run(t); },
                 "sequence 1 has read 8 tokens and reads 3 more, but its cache holds at most 10");
    set(s.from.length, 1, 11);
    expect_error([&] { s.run(t); }, "row 1 says that it holds 11 tokens, it has room for 10");
    set(s.from.length, 1, 0);
    AttentionCase ring = k;
    ring.window = 4, ring.cached = {4, kMostCounted - 3};
    AttentionSetup last(t, ring);
    last.run(t);
    set(last.from.length, 1, kMostCounted - 2);
    expect_error([&] { last.run(t); }, "has read 16777214 tokens and reads 3 more");
  }
  s.run(t);
  s.in.k = s.in.k.slice(2, 0, 2);
  expect_error([&] { s.run(t); }, "v: expected float32 (B=2, L=3, 2, P=8)");
  s.in.k = s.in.q.slice(2, 0, 4);
  expect_error([&] { s.run(t); }, "whose Hkv divides the 6 heads of q");
  s = AttentionSetup(t, k);
  s.from.length = s.from.length.slice(0, 0, 1);
  expect_error([&] { s.run(t); }, "from: expected lengths float32 (2, 1)");
  s = AttentionSetup(t, k);
  s.in.window = 11;
  expect_error([&] { s.run(t); }, "at least 11 rows for a window of that size, got 10");
  s.in.causal = false;
  expect_error([&] { s.run(t); }, "expected causal attention");
  testing::TestContext recorded(true);
  const AttentionSetup r(recorded, k);
  expect_error([&] { attention(recorded.c, r.in, nullptr, r.from, r.from); },
               "memory of its own while recording");
}

TEST(Attention, PlanningTouchesNothingAndTakesTheSameMemory) {
  const auto run = [](Arena arena, int64_t L) {
    Tape tape;
    std::map<std::string, Cost> costs;
    Context c{.arena = &arena, .tape = &tape, .costs = &costs};
    Tensor qkv = c.alloc({2, L, 8, 16}, DType::bf16);
    if (!c.planning()) std::memset(qkv.data, 0, qkv.bytes());
    tape.watch(qkv);
    const Tensor y = attention(c, {qkv.slice(2, 0, 4), qkv.slice(2, 4, 6), qkv.slice(2, 6, 8)}).y;
    tape.seed(c, y);
    tape.backward(c);
    EXPECT_EQ(costs["attention"].flops, 4.0 * 2 * static_cast<double>(L * (L + 1) / 2) * 4 * 16);
    return arena.peak();
  };
  for (int64_t L : {1, 100}) EXPECT_EQ(run(Arena::planning(), L), run(Arena(4 << 20), L));
}

}  // namespace
}  // namespace krait::ops
