#include "krait/ops/selective_scan/problem.h"

#include <algorithm>

#include "krait/ops/selective_scan/cuda_complex.h"

namespace krait::ops::scan {

static void check_shape(const char* name, const Tensor& t, const Shape& expected,
                        const char* meaning) {
  require(t.shape == expected, "[selective_scan] {}: expected {} = {}, got {}", name, meaning,
          expected, t.shape);
}

static void check_float(const char* name, const Tensor& t) {
  require(t.dtype == DType::f32 || t.dtype == DType::bf16,
          "[selective_scan] {}: expected float32 or bfloat16, got {}", name, name_of(t.dtype));
}

// u, dt, z
static void check_rows(const char* name, const Tensor& t, const Shape& expected) {
  check_shape(name, t, expected, "(B, L, E)");
  check_float(name, t);
  require(t.row_strided(),
          "[selective_scan] {}: expected rows at one distance and a dense last axis", name);
}

// A, D, dt_bias, states
static void check_parameter(const char* name, const Tensor& t, const Shape& expected,
                            const char* meaning) {
  check_shape(name, t, expected, meaning);
  require(t.dtype == DType::f32, "[selective_scan] {}: expected float32, got {}", name,
          name_of(t.dtype));
  require(t.contiguous(), "[selective_scan] {}: expected a contiguous tensor", name);
}

// True where the tensor is constant over time.
static bool check_B_or_C(const char* name, const Tensor& t, int64_t B, int64_t L, int64_t E,
                         int64_t N) {
  if (t.rank() == 2) {
    check_parameter(name, t, {E, N}, "(E, N)");
    return true;
  }
  require(t.rank() == 3 || t.rank() == 4,
          "[selective_scan] {}: expected (B, L, N), (B, L, G, N) or constant (E, N), got {}", name,
          t.shape);
  const int64_t G = t.rank() == 4 ? t.size(2) : 1;
  check_shape(name, t, t.rank() == 4 ? Shape{B, L, G, N} : Shape{B, L, N},
              t.rank() == 4 ? "(B, L, G, N)" : "(B, L, N)");
  check_float(name, t);
  const bool dense = N <= 1 || t.stride[static_cast<size_t>(t.rank() - 1)] == 1;
  const bool rows = B <= 1 || L <= 1 || t.stride[0] == L * t.stride[1];
  require(dense && rows,
          "[selective_scan] {}: expected steps at one distance and a dense last axis", name);
  return false;
}

Problem::Problem(const Context& c, const ScanInputs& inputs, const Packing* pack,
                 const Tensor& from, const Tensor& to, bool record)
    : in(inputs),
      state_in(from),
      state_out(to),
      packed(pack != nullptr),
      packing(pack ? *pack : Packing()) {
  require(in.u.rank() == 3, "[selective_scan] u: expected (B, L, E), got {}", in.u.shape);
  require(in.A.rank() == 2, "[selective_scan] A: expected (E, N), got {}", in.A.shape);
  B = in.u.size(0), L = in.u.size(1), E = in.u.size(2), N = in.A.size(1);
  tokens = B * L;
  require(N >= 1, "[selective_scan] A: expected at least one state a channel, got {}", in.A.shape);
  require(!in.complex || (N % 2 == 0 && !in.a_is_log),
          "[selective_scan] A: expected pairs (re, im), not their logarithm, got {}{}", in.A.shape,
          in.a_is_log ? " as a logarithm" : "");
  require(
      !in.complex || c.device.type != Device::cuda || N <= kMostComplex,
      "[selective_scan] A: expected at most {} numbers a channel where states are complex and on a "
      "GPU, got {}",
      kMostComplex, in.A.shape);
  check_rows("u", in.u, in.u.shape);
  check_rows("dt", in.dt, in.u.shape);
  if (in.z) check_rows("z", in.z, in.u.shape);
  check_parameter("A", in.A, {E, N}, "(E, N)");
  if (in.D) check_parameter("D", in.D, {E}, "(E)");
  if (in.dt_bias) check_parameter("dt_bias", in.dt_bias, {E}, "(E)");
  constant_B = check_B_or_C("B", in.B, B, L, E, N);
  constant_C = check_B_or_C("C", in.C, B, L, E, N);
  const auto groups = [](const Tensor& t) { return t.rank() == 4 ? t.size(2) : 1; };
  G = constant_B ? groups(in.C) : groups(in.B);
  require(constant_B || constant_C || groups(in.B) == groups(in.C),
          "[selective_scan] C: expected as many groups as B, {}, got {}", groups(in.B),
          groups(in.C));
  require(G >= 1 && E % G == 0,
          "[selective_scan] {} channels cannot be cut into {} groups of B and C", E, G);

  const auto check_state = [&](const char* name, const Tensor& t) {
    require(t.rank() == 3, "[selective_scan] {}: expected (S, E, N), got {}", name, t.shape);
    check_parameter(name, t, {t.size(0), E, N}, "(S, E, N)");
  };
  if (state_in) check_state("state_in", state_in);
  if (state_out) check_state("state_out", state_out);
  require(
      !record || !state_in || state_in.data != state_out.data,
      "[selective_scan] state_out is the memory of state_in: recording for backward needs both");
  sequences = Sequences(c, "selective_scan", B, L, pack, state_in, state_out);
}

int64_t Problem::place(int64_t t) const {
  if (!in.reverse) return t;
  if (!packed) return t / L * 2 * L + L - 1 - t;
  const int64_t* begin = packing.begin.as<int64_t>();
  const int64_t* end = std::upper_bound(begin, begin + packing.n + 1, t);
  return end[-1] + end[0] - 1 - t;
}

}  // namespace krait::ops::scan
