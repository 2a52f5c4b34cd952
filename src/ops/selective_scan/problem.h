// Private to selective_scan: the checked inputs of one call, and where in memory a part of them lies.
#pragma once
#include "krait/ops/kernel_memory.h"
#include "krait/ops/selective_scan/kernels.h"
#include "krait/ops/selective_scan/selective_scan.h"
#include "krait/ops/sequences.h"

namespace krait::ops::scan {

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
  Sequences sequences;

  // Blocks of kBlock channels, numbered group by group.
  int64_t blocks_of_group() const { return (E / G + kBlock - 1) / kBlock; }
  int64_t blocks() const { return G * blocks_of_group(); }
  BlockPlace block(int64_t b) const;
  // The row in memory of step t, counted sequence after sequence in the order of the scan.
  int64_t place(int64_t t) const;
  // Rows in the order of the scan: of (B, L, E) from channel `column` on, and of B or C that varies.
  Rows rows(const Tensor& t, const Sequence& s, int64_t column) const;
  Rows grouped_rows(const Tensor& t, const Sequence& s, int64_t group) const;
};

// Null where the tensor is absent.
inline float* floats_at(const Tensor& t, int64_t i) {
  return t ? static_cast<float*>(t.data) + i : nullptr;
}

// What follows is asked for each block of each sequence, at every decoded token: inline.

// Group `group` of token `token` on of B or C that varies: (B, L, N) or (B, L, G, N).
inline Rows grouped_rows_at(const Tensor& t, int64_t token, int64_t group) {
  if (!t) return {};
  const bool grouped = t.rank() == 4;
  const int64_t step = t.size(1) > 1 ? t.stride[1] : t.stride[0];  // (B, 1, ...): rows are steps
  const int64_t offset = token * step + (grouped ? group * t.stride[2] : 0);
  return {static_cast<const std::byte*>(t.data) + offset * static_cast<int64_t>(size_of(t.dtype)),
          step, t.dtype == DType::bf16};
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

inline BlockPlace Problem::block(int64_t b) const {
  const int64_t group = b / blocks_of_group(), first = (b % blocks_of_group()) * kBlock,
                in_group = E / G;
  return {group, group * in_group + first, in_group - first < kBlock ? in_group - first : kBlock};
}

}  // namespace krait::ops::scan
