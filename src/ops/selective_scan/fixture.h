// For the tests of selective_scan: a case, its random inputs, and one run of the op over them.
#pragma once
#include <algorithm>
#include <cmath>
#include <ostream>
#include <string>
#include <vector>

#include "krait/ops/selective_scan/reference.h"
#include "krait/ops/selective_scan/selective_scan.h"
#include "krait/tensor/memory.h"
#include "krait/testing/packing.h"

namespace krait::ops {

struct ScanCase {
  std::string name;
  int64_t B = 1, L = 97, E = 16, N = 16, G = 0;  // G = 0: B and C are (B, L, N)
  bool D = true, z = true, bias = true, softplus = true, a_is_log = true;
  bool constant_B = false, constant_C = false, strided = false, states = false;
  bool complex = false;          // of N/2 states; A is given, not its logarithm
  DType dtype = DType::f32;      // of u, dt, z
  DType dtype_BC = DType::f32;   // where they vary
  std::vector<int64_t> lengths;  // packed: of the sequences, B*L in all
  double dt_mean = -1, dt_scale = 1, A_mean = 0.5, A_scale = 1;
  double turning = 10, slowness = 1;  // of complex A: angles times, decays divided by
  bool fresh = false;  // A and the bias of dt as a model starts with them, but 20 times as fast
  uint64_t seed = 0;
  size_t memory = 0;  // bytes of the arena, where more than for the small cases
};
inline std::ostream& operator<<(std::ostream& out, const ScanCase& k) { return out << k.name; }

// The inputs of a case in the memory of a context.
struct ScanSetup {
  ScanInputs in;
  Tensor state_in, state_out;
  Packing packing;
  bool packed = false;

  ScanSetup(testing::TestContext& t, const ScanCase& k) {
    using testing::Input;
    const Shape rows{k.B, k.L, k.E};
    const auto random = [&](const Shape& s, DType type, uint64_t seed, double mean, double scale) {
      return t.random(s, type, 100 * k.seed + seed,
                      Input{mean, scale, k.strided && s[0] == k.B && s[1] == k.L, true});
    };
    in.u = random(rows, k.dtype, 1, 0, 1);
    in.dt = random(rows, k.dtype, 2, k.dt_mean, k.dt_scale);
    // A as its logarithm, around 1, or itself, always negative: the recurrence must not grow.
    in.A = random({k.E, k.N}, DType::f32, 3, k.a_is_log ? k.A_mean : -1.5,
                  k.a_is_log ? k.A_scale : 0.25);
    const Shape varying = k.G > 0 ? Shape{k.B, k.L, k.G, k.N} : Shape{k.B, k.L, k.N};
    const Shape constant{k.E, k.N};
    in.B =
        random(k.constant_B ? constant : varying, k.constant_B ? DType::f32 : k.dtype_BC, 4, 0, 1);
    in.C =
        random(k.constant_C ? constant : varying, k.constant_C ? DType::f32 : k.dtype_BC, 5, 0, 1);
    if (k.D) in.D = random({k.E}, DType::f32, 6, 0, 1);
    if (k.z) in.z = random(rows, k.dtype, 7, 0, 2);
    if (k.bias) in.dt_bias = random({k.E}, DType::f32, 8, 0, 0.5);
    if (k.complex)  // imaginary parts around zero, of many turns a step at the widest
      for (int64_t i = 0; i < in.A.numel(); i += 2) {
        set(in.A, i, get(in.A, i) / k.slowness);
        set(in.A, i + 1, (get(in.A, i + 1) + 1.5) * k.turning);
      }
    if (k.fresh) make_fresh(k);
    in.softplus = k.softplus;
    in.a_is_log = k.a_is_log;
    in.complex = k.complex;
    in.remake_y = true;
    int64_t S = k.B;
    packed = !k.lengths.empty();
    if (packed) {
      S = static_cast<int64_t>(k.lengths.size());
      packing = testing::packing_of(t, k.lengths);
    }
    if (k.states) {
      state_in = t.random({S, k.E, k.N}, DType::f32, 100 * k.seed + 9);
      state_out = t.tensor({S, k.E, k.N}, DType::f32);
      if (packed)
        copy_host(t.from(zeros(S * k.E * k.N), state_out.shape, DType::f32, false), state_out);
    }
  }

  ScanResult run(testing::TestContext& t) const {
    return selective_scan(t.c, in, packed ? &packing : nullptr, state_in, state_out);
  }

  // In the order of kScanInputNames.
  std::vector<Tensor> tensors() const {
    return {in.u, in.dt, in.A, in.B, in.C, in.D, in.z, in.dt_bias, state_in};
  }

  template <class T>
  ScanReference<T> reference(const ScanCase& k) const {
    const auto values = [](const Tensor& t) {
      const testing::Values v = testing::to_double(t);
      return std::vector<T>(v.begin(), v.end());
    };
    ScanReference<T> r;
    r.tokens = k.B * k.L, r.E = k.E, r.N = k.N, r.G = std::max<int64_t>(k.G, 1);
    r.constant_B = k.constant_B, r.constant_C = k.constant_C, r.softplus = k.softplus,
    r.a_is_log = k.a_is_log, r.complex = k.complex;
    r.u = values(in.u), r.dt = values(in.dt), r.A = values(in.A), r.B = values(in.B),
    r.C = values(in.C);
    r.D = values(in.D), r.z = values(in.z), r.dt_bias = values(in.dt_bias),
    r.state_in = values(state_in);
    testing::set_sequences(r, packed ? &packing : nullptr, k.B, k.L);
    r.rows_out = k.states ? static_cast<int64_t>(r.row_out.size()) : 0;
    return r;
  }

 private:
  void make_fresh(const ScanCase& k) {
    for (int64_t e = 0; e < k.E; ++e) {
      const double place = static_cast<double>(e * 7 % k.E) / static_cast<double>(k.E);
      set(in.dt_bias, e, std::log(std::expm1(0.02 * std::pow(100, place))));
      for (int64_t n = 0; n < k.N; ++n)
        set(in.A, e * k.N + n, std::log(static_cast<double>(n + 1)));
    }
  }
  static testing::Values zeros(int64_t n) { return testing::Values(static_cast<size_t>(n)); }
};

constexpr const char* kScanInputNames[] = {"u", "dt", "A",       "B",       "C",
                                           "D", "z",  "dt_bias", "state_in"};

template <class T>
std::vector<std::vector<T>*> fields(ScanReference<T>& r) {
  return {&r.u, &r.dt, &r.A, &r.B, &r.C, &r.D, &r.z, &r.dt_bias, &r.state_in};
}

// All that the op computes, as numbers.
struct ScanOutcome {
  testing::Values y, state;
  std::vector<testing::Values> grads;  // as kScanInputNames; empty where the input is absent
  testing::Values dy, dstate;          // the cotangents as stored
  testing::Values y_after;             // y once backward has run
};

// Forward and, where recorded, backward from random cotangents on y and on the last states.
inline ScanOutcome run_scan(const ScanCase& k, bool record) {
  testing::TestContext t(record, std::max(k.memory, size_t{8} << (k.N > 64 ? 23 : 20)));
  const ScanSetup setup(t, k);
  const ScanResult r = setup.run(t);
  ScanOutcome o{testing::to_double(r.y), testing::to_double(r.state), {}, {}, {}, {}};
  if (!record) return o;
  t.seed_grad(r.y, testing::random_values(r.y.numel(), 100 * k.seed + 20));
  if (r.state) t.seed_grad(r.state, testing::random_values(r.state.numel(), 100 * k.seed + 21));
  o.dy = testing::to_double(t.tape.grad(r.y));
  o.dstate = testing::to_double(r.state ? t.tape.grad(r.state) : Tensor());
  if (t.tape.awaited(r.y)) fill(t.c, r.y, NAN);
  t.tape.backward(t.c);
  for (const Tensor& x : setup.tensors())
    o.grads.push_back(x ? testing::to_double(t.tape.grad(x)) : testing::Values());
  o.y_after = testing::to_double(r.y);
  return o;
}

}  // namespace krait::ops
