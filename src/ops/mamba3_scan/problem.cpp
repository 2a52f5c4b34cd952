#include "krait/ops/mamba3_scan/problem.h"

namespace krait::ops::mamba3 {

static void check_shape(const char* name, const Tensor& t, const Shape& expected,
                        const char* meaning) {
  require(t.shape == expected, "[mamba3_scan] {}: expected {} = {}, got {}", name, meaning,
          expected, t.shape);
}

static void check_float(const char* name, const Tensor& t, bool only_float32) {
  require(t.dtype == DType::f32 || (!only_float32 && t.dtype == DType::bf16),
          "[mamba3_scan] {}: expected {}, got {}", name,
          only_float32 ? "float32" : "float32 or bfloat16", name_of(t.dtype));
}

// Activations: rows at one distance.
static void check_rows(const char* name, const Tensor& t, const Shape& expected,
                       const char* meaning, bool only_float32) {
  check_shape(name, t, expected, meaning);
  check_float(name, t, only_float32);
  require(t.row_strided(), "[mamba3_scan] {}: expected rows at one distance and a dense last axis",
          name);
}

static void check_contiguous(const char* name, const Tensor& t, const Shape& expected,
                             const char* meaning, bool only_float32 = true) {
  check_shape(name, t, expected, meaning);
  check_float(name, t, only_float32);
  require(t.contiguous(), "[mamba3_scan] {}: expected a contiguous tensor", name);
}

Problem::Problem(const Context& c, const Mamba3Inputs& inputs, const Packing* pack,
                 const Mamba3State& state_in, const Mamba3State& state_out, bool record)
    : in(inputs),
      from(state_in),
      to(state_out),
      packed(pack != nullptr),
      packing(pack ? *pack : Packing()) {
  require(in.x.rank() == 3, "[mamba3_scan] x: expected (B, L, H P), got {}", in.x.shape);
  require(in.dt.rank() == 3, "[mamba3_scan] dt: expected (B, L, H), got {}", in.dt.shape);
  require(in.B.rank() == 5, "[mamba3_scan] B: expected (B, L, R, G, N), got {}", in.B.shape);
  require(in.angle.rank() == 3 || in.angle.rank() == 4,
          "[mamba3_scan] angle: expected (B, L, T) or (B, L, H, T), got {}", in.angle.shape);
  B = in.x.size(0), L = in.x.size(1), H = in.dt.size(2), G = in.B.size(3);
  tokens = B * L;
  require(H >= 1 && in.x.size(2) >= H && in.x.size(2) % H == 0,
          "[mamba3_scan] x: {} channels cannot be cut into {} heads", in.x.size(2), H);
  require(G >= 1 && H % G == 0, "[mamba3_scan] {} heads cannot be cut into {} groups of B and C", H,
          G);
  size = {in.x.size(2) / H, in.B.size(4), in.B.size(2), in.angle.size(-1)};
  const int64_t P = size.P, N = size.N, R = size.R, T = size.T;
  require(N >= 1 && R >= 1, "[mamba3_scan] B: expected a rank and a state of at least one, got {}",
          in.B.shape);
  require(T >= 1 && T <= N / 2 && (!in.halves || N % 2 == 0),
          "[mamba3_scan] {} angles cannot turn pairs of {} dimensions", T, N);

  check_rows("x", in.x, in.x.shape, "(B, L, H P)", false);
  if (in.z) check_rows("z", in.z, in.x.shape, "(B, L, H P)", false);
  for (const auto& [name, t] : {std::pair("dt", in.dt), {"adt", in.adt}, {"trap", in.trap}})
    check_rows(name, t, {B, L, H}, "(B, L, H)", true);
  check_contiguous("B", in.B, {B, L, R, G, N}, "(B, L, R, G, N)", false);
  check_contiguous("C", in.C, {B, L, R, G, N}, "(B, L, R, G, N)", false);
  check_contiguous("B_bias", in.B_bias, {H, R, N}, "(H, R, N)");
  check_contiguous("C_bias", in.C_bias, {H, R, N}, "(H, R, N)");
  if (shared_angle()) {
    check_rows("angle", in.angle, {B, L, T}, "(B, L, T)", true);
  } else {
    check_contiguous("angle", in.angle, {B, L, H, T}, "(B, L, H, T)");
  }
  if (in.D) check_contiguous("D", in.D, {H}, "(H)");
  if (in.norm) check_contiguous("norm", in.norm, {H * P}, "(H P)");
  require(R == 1 || in.mimo_x, "[mamba3_scan] rank {} needs mimo_x and mimo_o", R);
  require(static_cast<bool>(in.mimo_x) == static_cast<bool>(in.mimo_o) &&
              static_cast<bool>(in.mimo_z) == (in.mimo_x && in.z),
          "[mamba3_scan] mimo_x, mimo_o and, with z, mimo_z: expected all or none");
  for (const auto& [name, t] :
       {std::pair("mimo_x", in.mimo_x), {"mimo_z", in.mimo_z}, {"mimo_o", in.mimo_o}})
    if (t) check_contiguous(name, t, {H, R, P}, "(H, R, P)");

  const auto check_state = [&](const char* which, const Mamba3State& s) {
    if (!s.angle && !s.ssm && !s.k && !s.v) return;
    const int64_t Q = packed && s.ssm.rank() > 0 ? s.ssm.size(0) : B;
    check_contiguous(fmt::format("{} angle", which).c_str(), s.angle, {Q, H, T}, "(Q, H, T)");
    check_contiguous(fmt::format("{} ssm", which).c_str(), s.ssm, {Q, H, P, N}, "(Q, H, P, N)");
    check_contiguous(fmt::format("{} k", which).c_str(), s.k, {Q, R, H, N}, "(Q, R, H, N)");
    check_contiguous(fmt::format("{} v", which).c_str(), s.v, {Q, H, P}, "(Q, H, P)");
  };
  check_state("state in:", from);
  check_state("state out:", to);
  require(!record || !from.ssm || from.ssm.data != to.ssm.data,
          "[mamba3_scan] the states out are the memory of those in: recording for backward needs "
          "both");
  sequences = Sequences(c, "mamba3_scan", B, L, pack, from.ssm, to.ssm);
}

Rows rows_at(const Tensor& t, int64_t token, int64_t column) {
  if (!t) return {};
  // (B, L, ...): what comes after the tokens is dense, the tokens are at one distance.
  int64_t step = t.rank() == 3 ? t.row_stride() : 1;
  for (int axis = 2; t.rank() > 3 && axis < t.rank(); ++axis) step *= t.size(axis);
  return {static_cast<const std::byte*>(t.data) +
              (token * step + column) * static_cast<int64_t>(size_of(t.dtype)),
          step, t.dtype == DType::bf16};
}

Head Problem::head(int64_t h, const Sequence& s) const {
  const auto [P, N, R, T] = size;
  const int64_t group = h / (H / G);
  const auto floats = [](const Tensor& t, int64_t i) {
    return t ? static_cast<const float*>(t.data) + i : nullptr;
  };
  Head w;
  w.size = size;
  w.tokens = s.tokens;
  w.halves = in.halves;
  w.x = rows_at(in.x, s.begin, h * P);
  w.z = rows_at(in.z, s.begin, h * P);
  w.B = rows_at(in.B, s.begin, group * N);
  w.C = rows_at(in.C, s.begin, group * N);
  w.rank_stride = G * N;
  w.dt = rows_at(in.dt, s.begin, h);
  w.adt = rows_at(in.adt, s.begin, h);
  w.trap = rows_at(in.trap, s.begin, h);
  w.angle = rows_at(in.angle, s.begin, shared_angle() ? 0 : h * T);
  w.B_bias = floats(in.B_bias, h * R * N);
  w.C_bias = floats(in.C_bias, h * R * N);
  w.mimo_x = floats(in.mimo_x, h * R * P);
  w.mimo_z = floats(in.mimo_z, h * R * P);
  w.mimo_o = floats(in.mimo_o, h * R * P);
  w.norm = floats(in.norm, h * P);
  w.norm_eps = in.norm_eps;
  w.D = in.D ? *floats(in.D, h) : 0.0f;
  w.from = state_at<const float>(from, s.in, h, *this);
  return w;
}

}  // namespace krait::ops::mamba3
