// Private to mamba3_scan: the checked inputs of one call, and where in memory a part of them lies.
#pragma once
#include "krait/ops/mamba3_scan/kernels.h"
#include "krait/ops/mamba3_scan/mamba3_scan.h"
#include "krait/ops/sequences.h"

namespace krait::ops::mamba3 {

struct Problem {
  // Throws Error where shapes, types or the packing do not fit.
  Problem(const Context& c, const Mamba3Inputs& in, const Packing* packing, const Mamba3State& from,
          const Mamba3State& to, bool record);

  Mamba3Inputs in;
  Mamba3State from, to;
  int64_t B, L, H, G, tokens;
  Sizes size;
  bool packed;
  Packing packing;
  Sequences sequences;

  bool shared_angle() const { return in.angle.rank() == 3; }
  // Sets of neighbouring heads of one group, numbered group by group; as even as can be.
  int64_t sets_of_group() const { return (H / G + kHeadsOfSet - 1) / kHeadsOfSet; }
  int64_t sets() const { return G * sets_of_group(); }
  int64_t first_head(int64_t set) const {
    const int64_t n = sets_of_group();
    return set / n * (H / G) + set % n * (H / G) / n;
  }
  int64_t heads_of(int64_t set) const {
    const int64_t n = sets_of_group(), at = set % n;
    return (at + 1) * (H / G) / n - at * (H / G) / n;
  }

  // Head h of a sequence.
  Head head(int64_t h, const Sequence& s) const;
};

// Element (token, column) on of a tensor whose tokens lie at one distance.
Rows rows_at(const Tensor& t, int64_t token, int64_t column);

// The state of head h in row `row` of states; all null where the row is negative or there are none.
template <class F>
StateOf<F> state_at(const Mamba3State& s, int64_t row, int64_t h, const Problem& p) {
  if (row < 0 || !s.ssm) return {};
  const Sizes& n = p.size;
  const auto at = [](const Tensor& t, int64_t i) { return static_cast<float*>(t.data) + i; };
  const int64_t head = row * p.H + h;
  return {at(s.angle, head * n.T), at(s.ssm, head * n.P * n.N),
          at(s.k, (row * n.R * p.H + h) * n.N), at(s.v, head * n.P), p.H * n.N};
}

}  // namespace krait::ops::mamba3
