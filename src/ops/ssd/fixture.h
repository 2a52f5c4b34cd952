// For the tests of ssd: a case, its random inputs, and one run of the op over them.
#pragma once
#include <ostream>
#include <string>
#include <vector>

#include "krait/ops/ssd/reference.h"
#include "krait/ops/ssd/ssd.h"
#include "krait/testing/packing.h"

namespace krait::ops {

struct SsdCase {
  std::string name;
  int64_t B = 1, L = 97, H = 3, P = 8, N = 16, G = 1;
  bool D = true, D_per_channel = false, bias = true, softplus = true, a_is_log = true;
  bool strided = false, states = false;
  DType dtype = DType::f32;      // of x
  DType dtype_BC = DType::f32;   // of B, C, dt
  std::vector<int64_t> lengths;  // packed: of the sequences, B*L in all
  double dt_mean = -1, dt_scale = 1, A_mean = 0.5, A_scale = 1;
  float dt_min = 0, dt_max = std::numeric_limits<float>::infinity();
  uint64_t seed = 0;
};
inline std::ostream& operator<<(std::ostream& out, const SsdCase& k) { return out << k.name; }

constexpr const char* kSsdInputNames[] = {"x", "dt", "A", "B", "C", "D", "dt_bias", "state_in"};

template <class T>
std::vector<std::vector<T>*> fields(SsdReference<T>& r) {
  return {&r.x, &r.dt, &r.A, &r.B, &r.C, &r.D, &r.dt_bias, &r.state_in};
}

// The inputs of a case in the memory of a context.
struct SsdSetup {
  SsdInputs in;
  Tensor state_in, state_out;
  Packing packing;
  bool packed = false;

  SsdSetup(testing::TestContext& t, const SsdCase& k) {
    const auto random = [&](const Shape& s, DType type, uint64_t seed, double mean, double scale) {
      return t.random(s, type, 100 * k.seed + seed,
                      testing::Input{mean, scale, k.strided && s.rank == 3, true});
    };
    in.x = random({k.B, k.L, k.H * k.P}, k.dtype, 1, 0, 1);
    in.dt = random({k.B, k.L, k.H}, k.dtype_BC, 2, k.dt_mean, k.dt_scale);
    // A as its logarithm, around 1, or itself, always negative: the recurrence must not grow.
    in.A =
        random({k.H}, DType::f32, 3, k.a_is_log ? k.A_mean : -1.5, k.a_is_log ? k.A_scale : 0.25);
    in.B = random({k.B, k.L, k.G * k.N}, k.dtype_BC, 4, 0, 1);
    in.C = random({k.B, k.L, k.G * k.N}, k.dtype_BC, 5, 0, 1);
    if (k.D) in.D = random(k.D_per_channel ? Shape{k.H, k.P} : Shape{k.H}, DType::f32, 6, 0, 1);
    if (k.bias) in.dt_bias = random({k.H}, DType::f32, 7, 0, 0.5);
    in.groups = k.G;
    in.softplus = k.softplus;
    in.a_is_log = k.a_is_log;
    in.dt_min = k.dt_min, in.dt_max = k.dt_max;
    packed = !k.lengths.empty();
    const auto S = packed ? static_cast<int64_t>(k.lengths.size()) : k.B;
    if (packed) packing = testing::packing_of(t, k.lengths);
    if (!k.states) return;
    state_in = t.random({S, k.H, k.P, k.N}, DType::f32, 100 * k.seed + 9);
    state_out = t.tensor(state_in.shape, DType::f32);
    for (int64_t i = 0; packed && i < state_out.numel(); ++i) set(state_out, i, 0);
  }

  SsdResult run(testing::TestContext& t) const {
    return ssd(t.c, in, packed ? &packing : nullptr, state_in, state_out);
  }

  // In the order of kSsdInputNames.
  std::vector<Tensor> tensors() const {
    return {in.x, in.dt, in.A, in.B, in.C, in.D, in.dt_bias, state_in};
  }

  template <class T>
  SsdReference<T> reference(const SsdCase& k) const {
    SsdReference<T> r;
    r.tokens = k.B * k.L, r.H = k.H, r.P = k.P, r.N = k.N, r.G = k.G;
    r.softplus = k.softplus, r.a_is_log = k.a_is_log, r.D_per_channel = k.D_per_channel;
    r.dt_min = k.dt_min, r.dt_max = k.dt_max;
    for (size_t i = 0; i < tensors().size(); ++i) {
      const testing::Values v = testing::to_double(tensors()[i]);
      fields(r)[i]->assign(v.begin(), v.end());
    }
    testing::set_sequences(r, packed ? &packing : nullptr, k.B, k.L);
    r.rows_out = k.states ? static_cast<int64_t>(r.row_out.size()) : 0;
    return r;
  }
};

// All that the op computes, as numbers.
struct SsdOutcome {
  testing::Values y, state;
  std::vector<testing::Values> grads;  // as kSsdInputNames; empty where the input is absent
  testing::Values dy, dstate;          // the cotangents as stored
};

// Forward and, where recorded, backward from random cotangents on y and on the last states.
inline SsdOutcome run_ssd(const SsdCase& k, bool record) {
  testing::TestContext t(record, size_t{32} << 20);
  const SsdSetup setup(t, k);
  const SsdResult r = setup.run(t);
  SsdOutcome o{testing::to_double(r.y), testing::to_double(r.state), {}, {}, {}};
  if (!record) return o;
  t.seed_grad(r.y, testing::random_values(r.y.numel(), 100 * k.seed + 20));
  if (r.state) t.seed_grad(r.state, testing::random_values(r.state.numel(), 100 * k.seed + 21));
  o.dy = testing::to_double(t.tape.grad(r.y));
  o.dstate = testing::to_double(r.state ? t.tape.grad(r.state) : Tensor());
  t.tape.backward(t.c);
  for (const Tensor& x : setup.tensors())
    o.grads.push_back(x ? testing::to_double(t.tape.grad(x)) : testing::Values());
  return o;
}

}  // namespace krait::ops
