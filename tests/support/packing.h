// Sequences for tests of ops over time.
#pragma once
#include <algorithm>
#include <vector>

#include "krait/ops/packing.h"
#include "krait/testing/op_test.h"

namespace krait::testing {

// Sequences of these lengths, their states in other rows than their own: the second starts from zero, the third from
// the row of the first, the fourth leaves no state.
inline ops::Packing packing_of(TestContext& t, const std::vector<int64_t>& lengths) {
  const auto S = static_cast<int64_t>(lengths.size());
  ops::Packing p;
  p.n = S;
  p.begin = t.tensor({S + 1}, DType::i64);
  p.state_in = t.tensor({S}, DType::i32);
  p.state_out = t.tensor({S}, DType::i32);
  set(p.begin, 0, 0);
  for (int64_t s = 0; s < S; ++s) {
    const int64_t length = lengths[static_cast<size_t>(s)];
    set(p.begin, s + 1, get(p.begin, s) + static_cast<double>(length));
    set(p.state_in, s, s == 1 ? -1 : s == 2 ? 0 : static_cast<double>(s));
    set(p.state_out, s, s == 3 ? -1 : static_cast<double>(S - 1 - s));
    p.longest = std::max(p.longest, length);
  }
  return p;
}

// Tells a reference which sequences a call has: those of the packing, or, without one, B rows of L tokens.
template <class Reference>
void set_sequences(Reference& r, const ops::Packing* packing, int64_t B, int64_t L) {
  const auto number = [&](const Tensor& t, int64_t s) { return static_cast<int64_t>(get(t, s)); };
  const int64_t S = packing ? packing->n : B;
  for (int64_t s = 0; s <= S; ++s) r.begin.push_back(packing ? number(packing->begin, s) : s * L);
  for (int64_t s = 0; s < S; ++s) {
    r.row_in.push_back(packing ? number(packing->state_in, s) : s);
    r.row_out.push_back(packing ? number(packing->state_out, s) : s);
  }
}

// Flips the rows of each sequence of (tokens, columns), in place; sequence s has rows [begin[s], begin[s + 1]).
inline void flip(const Tensor& t, const std::vector<int64_t>& begin) {
  const int64_t columns = t.numel() / begin.back();
  for (size_t s = 0; s + 1 < begin.size(); ++s)
    for (int64_t a = begin[s], b = begin[s + 1] - 1; a < b; ++a, --b)
      for (int64_t i = 0; i < columns; ++i) {
        const double v = get(t, a * columns + i);
        set(t, a * columns + i, get(t, b * columns + i));
        set(t, b * columns + i, v);
      }
}

}  // namespace krait::testing
