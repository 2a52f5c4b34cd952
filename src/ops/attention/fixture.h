// For the tests of attention: a case, its random inputs, and one run of the op over them.
#pragma once
#include <ostream>
#include <string>
#include <vector>

#include "krait/ops/attention/attention.h"
#include "krait/ops/attention/reference.h"
#include "krait/testing/packing.h"

namespace krait::ops {

struct AttentionCase {
  std::string name;
  int64_t B = 1, L = 97, H = 2, Hkv = 2, P = 16;
  bool causal = true;
  int64_t window = 0;
  DType dtype = DType::f32;
  enum Layout { separate, rows, interleaved } layout = separate;  // rows: q, k, v of one tensor
  std::vector<int64_t> lengths;                                   // packed
  // A cache comes in where C > 0, which holds cached[row] tokens; one goes out where C_out > 0.
  int64_t C = 0, C_out = 0;
  std::vector<int64_t> cached;
  DType cache = DType::f32;  // of the keys and values in both; only float32 for gradients
  double size = 1;           // of q and k
  uint64_t seed = 0;
};
inline std::ostream& operator<<(std::ostream& out, const AttentionCase& k) { return out << k.name; }

struct AttentionSetup {
  AttentionInputs in;
  KeyCache from, to;
  Packing packing;
  bool packed = false;
  int64_t S = 0;  // sequences, and rows of the caches

  AttentionSetup(testing::TestContext& t, const AttentionCase& k) {
    const auto random = [&](const Shape& s, DType type, uint64_t seed, double scale) {
      return t.random(s, type, 100 * k.seed + seed, {0, scale, false, true});
    };
    if (k.layout == AttentionCase::rows) {
      const Tensor all = random({k.B, k.L, k.H + 2 * k.Hkv, k.P}, k.dtype, 1, k.size);
      in.q = all.slice(2, 0, k.H);
      in.k = all.slice(2, k.H, k.H + k.Hkv);
      in.v = all.slice(2, k.H + k.Hkv, k.H + 2 * k.Hkv);
    } else if (k.layout == AttentionCase::interleaved) {  // as GPT-NeoX has them; H = Hkv
      const Tensor all = random({k.B, k.L, k.H, 3 * k.P}, k.dtype, 1, k.size);
      in.q = all.slice(3, 0, k.P);
      in.k = all.slice(3, k.P, 2 * k.P);
      in.v = all.slice(3, 2 * k.P, 3 * k.P);
    } else {
      in.q = random({k.B, k.L, k.H, k.P}, k.dtype, 1, k.size);
      in.k = random({k.B, k.L, k.Hkv, k.P}, k.dtype, 2, k.size);
      in.v = random({k.B, k.L, k.Hkv, k.P}, k.dtype, 3, 1);
    }
    in.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(k.P)));
    in.causal = k.causal;
    in.window = k.window;
    packed = !k.lengths.empty();
    S = packed ? static_cast<int64_t>(k.lengths.size()) : k.B;
    if (packed) {
      packing = testing::packing_of(t, k.lengths);
    }
    const int64_t width = k.Hkv * k.P;
    if (k.C > 0) {  // rows without a token stay NaN
      from.k = filled(t, k, 4);
      from.v = filled(t, k, 5);
      from.length = t.tensor({S, 1}, DType::f32);
      for (int64_t s = 0; s < S; ++s)
        set(from.length, s, static_cast<double>(k.cached[static_cast<size_t>(s)]));
    }
    if (k.C_out > 0) {
      to.k = t.tensor({S, k.C_out, width}, k.cache);
      to.v = t.tensor({S, k.C_out, width}, k.cache);
      to.length = t.tensor({S, 1}, DType::f32);
    }
  }

  AttentionResult run(testing::TestContext& t) const {
    return attention(t.c, in, packed ? &packing : nullptr, from, to);
  }

  std::vector<Tensor> tensors() const { return {in.q, in.k, in.v, from.k, from.v}; }

  template <class T>
  AttentionReference<T> reference(const AttentionCase& k) const {
    const auto values = [](const Tensor& t) {
      const testing::Values v = testing::to_double(t);
      return std::vector<T>(v.begin(), v.end());
    };
    AttentionReference<T> r;
    r.tokens = k.B * k.L, r.H = k.H, r.Hkv = k.Hkv, r.P = k.P, r.window = k.window;
    r.C = k.C, r.C_out = k.C_out, r.causal = k.causal;
    r.scale = static_cast<double>(in.scale);
    r.q = values(in.q), r.k = values(in.k), r.v = values(in.v);
    r.cache_k = values(from.k), r.cache_v = values(from.v);
    r.length = k.cached;
    testing::set_sequences(r, packed ? &packing : nullptr, k.B, k.L);
    r.rows_out = k.C_out > 0 ? S : 0;
    return r;
  }

 private:
  // The rows that hold a token are random, the others NaN.
  static Tensor filled(testing::TestContext& t, const AttentionCase& k, uint64_t seed) {
    const auto S = static_cast<int64_t>(k.cached.size()), width = k.Hkv * k.P;
    Tensor cache = t.tensor({S, k.C, width}, k.cache);
    if (t.c.tape) t.tape.watch(cache);
    const testing::Values values = testing::random_values(S * k.C * width, 100 * k.seed + seed);
    for (int64_t i = 0; i < cache.numel(); ++i) {
      const int64_t row = i / width / k.C, place = i / width % k.C;
      if (place < k.cached[static_cast<size_t>(row)]) set(cache, i, values[static_cast<size_t>(i)]);
    }
    return cache;
  }
};

// NaN (no token there) as zero, as in the reference.
inline testing::Values without_nan(testing::Values v) {
  for (double& x : v)
    if (std::isnan(x)) x = 0;
  return v;
}

constexpr const char* kAttentionInputNames[] = {"q", "k", "v", "cache k", "cache v"};

template <class T>
std::vector<std::vector<T>*> fields(AttentionReference<T>& r) {
  return {&r.q, &r.k, &r.v, &r.cache_k, &r.cache_v};
}

struct AttentionOutcome {
  testing::Values y, cache_k, cache_v, length;
  std::vector<testing::Values> grads;  // as kAttentionInputNames
  testing::Values dy, dk_out, dv_out;  // the cotangents as stored
};

inline AttentionOutcome run_attention(const AttentionCase& k, bool record) {
  testing::TestContext t(record, size_t{32} << 20);
  const AttentionSetup setup(t, k);
  const AttentionResult r = setup.run(t);
  AttentionOutcome o;
  o.y = testing::to_double(r.y);
  o.cache_k = without_nan(testing::to_double(r.cache.k));
  o.cache_v = without_nan(testing::to_double(r.cache.v));
  o.length = testing::to_double(r.cache.length);
  if (!record) return o;
  const auto seed = [&](const Tensor& x, uint64_t n) {
    if (x) t.seed_grad(x, testing::random_values(x.numel(), 100 * k.seed + n));
    return testing::to_double(x ? t.tape.grad(x) : Tensor());
  };
  o.dy = seed(r.y, 20);
  o.dk_out = seed(r.cache.k, 21);
  o.dv_out = seed(r.cache.v, 22);
  t.tape.backward(t.c);
  for (const Tensor& x : setup.tensors())
    o.grads.push_back(x ? testing::to_double(t.tape.grad(x)) : testing::Values());
  return o;
}

}  // namespace krait::ops
