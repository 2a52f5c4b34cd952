// Private to selective_scan: the checked inputs of one call, and where in memory a part of them lies.
#pragma once
#include "krait/ops/packing.h"
#include "krait/ops/selective_scan/kernels.h"
#include "krait/ops/selective_scan/selective_scan.h"

namespace krait::ops::scan {

struct Sequence {
  int64_t begin = 0, tokens = 0;
  int64_t in = -1, out = -1;  // rows of the states, -1: none
};

struct BlockPlace {
  int64_t group, first, channels;  // of B and C; first channel; how many
};

struct Problem {
  // Throws Error where shapes, types or the packing do not fit.
  Problem(const Context& c, const ScanInputs& in, const Packing* packing, const Tensor& state_in,
          const Tensor& state_out, bool record);

  ScanInputs in;
  Tensor state_in, state_out;
  int64_t B, L, E, N, G, tokens;
  bool constant_B, constant_C;
  bool packed;
  Packing packing;

  int64_t sequences() const { return packed ? packing.n : B; }
  Sequence sequence(int64_t s) const;
  // Blocks of kBlock channels, numbered group by group.
  int64_t blocks_of_group() const { return (E / G + kBlock - 1) / kBlock; }
  int64_t blocks() const { return G * blocks_of_group(); }
  BlockPlace block(int64_t b) const;
  // The row in memory of step t, counted sequence after sequence in the order of the scan.
  int64_t place(int64_t t) const;
  // Rows in the order of the scan: of (B, L, E) from channel `column` on, and of B or C that varies.
  Rows rows(const Tensor& t, const Sequence& s, int64_t column) const;
  Rows grouped_rows(const Tensor& t, const Sequence& s, int64_t group) const;

 private:
  void check_packing(const Context& c) const;
};

// Null where the tensor is absent.
inline float* floats_at(const Tensor& t, int64_t i) {
  return t ? static_cast<float*>(t.data) + i : nullptr;
}

// What follows is asked for each block of each sequence, at every decoded token: inline.

inline Rows rows_with(const Tensor& t, int64_t stride, int64_t offset) {
  if (!t) return {};
  return {static_cast<const std::byte*>(t.data) + offset * static_cast<int64_t>(size_of(t.dtype)),
          stride, t.dtype == DType::bf16};
}

// Element (row, column) on of a tensor whose leading axes are rows at one distance.
inline Rows rows_at(const Tensor& t, int64_t row, int64_t column) {
  if (!t) return {};
  const int64_t stride = t.row_stride();
  return rows_with(t, stride, row * stride + column);
}

// The same of B or C that varies: (B, L, N) or (B, L, G, N).
inline Rows grouped_rows_at(const Tensor& t, int64_t token, int64_t group) {
  if (!t) return {};
  const bool grouped = t.rank() == 4;
  const int64_t step = t.size(1) > 1 ? t.stride[1] : t.stride[0];  // (B, 1, ...): rows are steps
  return rows_with(t, step, token * step + (grouped ? group * t.stride[2] : 0));
}

inline Rows turned(Rows r, const Sequence& s) {
  const int64_t bytes = (s.tokens - 1) * r.stride * (r.bf16 ? 2 : 4);
  if (r.data && s.tokens > 0) r.data = static_cast<const std::byte*>(r.data) + bytes;
  r.stride = -r.stride;
  return r;
}

inline Rows Problem::rows(const Tensor& t, const Sequence& s, int64_t column) const {
  const Rows r = rows_at(t, s.begin, column);
  return in.reverse ? turned(r, s) : r;
}

inline Rows Problem::grouped_rows(const Tensor& t, const Sequence& s, int64_t group) const {
  const Rows r = grouped_rows_at(t, s.begin, group);
  return in.reverse ? turned(r, s) : r;
}

inline Sequence Problem::sequence(int64_t s) const {
  if (!packed) return {s * L, L, state_in ? s : -1, state_out ? s : -1};
  const int64_t* begin = static_cast<const int64_t*>(packing.begin.data);
  const auto row = [s](const Tensor& t) { return int64_t{static_cast<const int32_t*>(t.data)[s]}; };
  return {begin[s], begin[s + 1] - begin[s], state_in ? row(packing.state_in) : -1,
          state_out ? row(packing.state_out) : -1};
}

inline BlockPlace Problem::block(int64_t b) const {
  const int64_t group = b / blocks_of_group(), first = (b % blocks_of_group()) * kBlock,
                in_group = E / G;
  return {group, group * in_group + first, in_group - first < kBlock ? in_group - first : kBlock};
}

}  // namespace krait::ops::scan
