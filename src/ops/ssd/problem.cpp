#include "krait/ops/ssd/problem.h"

namespace krait::ops::ssd_call {

static void check_parameter(const char* name, const Tensor& t, const Shape& expected,
                            const char* meaning) {
  require(t.shape == expected, "[ssd] {}: expected {} = {}, got {}", name, meaning, expected,
          t.shape);
  require(t.dtype == DType::f32, "[ssd] {}: expected float32, got {}", name, name_of(t.dtype));
  require(t.contiguous(), "[ssd] {}: expected a contiguous tensor", name);
}

static void check_rows(const char* name, const Tensor& t, const Shape& expected,
                       const char* meaning) {
  require(t.shape == expected, "[ssd] {}: expected {} = {}, got {}", name, meaning, expected,
          t.shape);
  require(t.dtype == DType::f32 || t.dtype == DType::bf16,
          "[ssd] {}: expected float32 or bfloat16, got {}", name, name_of(t.dtype));
  require(t.row_strided(), "[ssd] {}: expected rows at one distance and a dense last axis", name);
}

static void check_sizes(const SsdInputs& in) {
  require(in.x.rank() == 3, "[ssd] x: expected (B, L, H*P), got {}", in.x.shape);
  require(in.A.rank() == 1 && in.A.size(0) >= 1, "[ssd] A: expected (H), got {}", in.A.shape);
  const int64_t H = in.A.size(0);
  require(in.x.size(2) >= H && in.x.size(2) % H == 0,
          "[ssd] x: {} channels cannot be cut into the {} heads of A", in.x.size(2), H);
  require(in.groups >= 1 && H % in.groups == 0,
          "[ssd] {} heads cannot be cut into {} groups of B and C", H, in.groups);
  require(in.B.rank() == 3 && in.B.size(2) >= in.groups && in.B.size(2) % in.groups == 0,
          "[ssd] B: expected (B, L, G*N) with {} groups, got {}", in.groups, in.B.shape);
  require(in.dt_min <= in.dt_max, "[ssd] the limits of dt are {} to {}", in.dt_min, in.dt_max);
}

Problem::Problem(const Context& c, const SsdInputs& inputs, const Packing* pack, const Tensor& from,
                 const Tensor& to, bool record)
    : in((check_sizes(inputs), inputs)),
      state_in(from),
      state_out(to),
      packed(pack != nullptr),
      packing(pack ? *pack : Packing()),
      H(in.A.size(0)),
      P(in.x.size(2) / H),
      N(in.B.size(2) / in.groups),
      G(in.groups),
      tokens(in.x.size(0) * in.x.size(1)),
      sequences(c, "ssd", in.x.size(0), in.x.size(1), pack, from, to) {
  const int64_t B = in.x.size(0), L = in.x.size(1);
  check_rows("x", in.x, {B, L, H * P}, "(B, L, H*P)");
  check_rows("dt", in.dt, {B, L, H}, "(B, L, H)");
  check_rows("B", in.B, {B, L, G * N}, "(B, L, G*N)");
  check_rows("C", in.C, {B, L, G * N}, "(B, L, G*N)");
  check_parameter("A", in.A, {H}, "(H)");
  const bool per_channel = in.D && in.D.rank() == 2;
  if (in.D)
    check_parameter("D", in.D, per_channel ? Shape{H, P} : Shape{H},
                    per_channel ? "(H, P)" : "(H)");
  if (in.dt_bias) check_parameter("dt_bias", in.dt_bias, {H}, "(H)");
  const auto check_state = [&](const char* name, const Tensor& t) {
    require(t.rank() == 4, "[ssd] {}: expected (S, H, P, N), got {}", name, t.shape);
    check_parameter(name, t, {t.size(0), H, P, N}, "(S, H, P, N)");
  };
  if (state_in) check_state("state_in", state_in);
  if (state_out) check_state("state_out", state_out);
  require(!record || !state_in || state_in.data != state_out.data,
          "[ssd] state_out is the memory of state_in: recording for backward needs both");
}

}  // namespace krait::ops::ssd_call
