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

// Element (t, column) on of a tensor whose leading axes are rows at one distance.
Rows rows_at(const Tensor& t, int64_t row, int64_t column);
// The same of B or C that varies: (B, L, N) or (B, L, G, N).
Rows grouped_rows_at(const Tensor& t, int64_t token, int64_t group);
// Null where the tensor is absent.
inline float* floats_at(const Tensor& t, int64_t i) {
  return t ? static_cast<float*>(t.data) + i : nullptr;
}

}  // namespace krait::ops::scan
