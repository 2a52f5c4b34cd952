#include "krait/nn/state.h"

#include <gtest/gtest.h>

#include "krait/tensor/memory.h"

namespace krait::nn {
namespace {

// Two parts of one size and between them one that grows; sizes that memory is not aligned by.
std::vector<StatePart> parts() { return {{"a", {3}}, {"keys", {2}, true, true}, {"b", {5, 1}}}; }

void fill_all(State& s) {
  for (size_t p = 0; p < s.parts().size(); ++p)
    for (int64_t i = 0; i < s.tensor(p).numel(); ++i) set(s.tensor(p), i, 7);
}

double sum(const Tensor& t) {
  double total = 0;
  for (int64_t i = 0; i < t.numel(); ++i) total += get(t, i);
  return total;
}

TEST(State, ZeroClearsWhatDoesNotGrow) {
  State s(parts(), 3, 4);
  EXPECT_EQ(sum(s.tensor(0)), 0);
  EXPECT_EQ(sum(s.tensor(2)), 0);
  fill_all(s);
  s.zero();
  EXPECT_EQ(sum(s.tensor(0)), 0);
  EXPECT_EQ(sum(s.tensor(1)), 7 * 3 * 4 * 2);  // behind the length, which is zero: anything
  EXPECT_EQ(sum(s.tensor(2)), 0);
}

TEST(State, ZeroOfSomeRowsLeavesTheOthers) {
  State s(parts(), 3, 4);
  fill_all(s);
  s.first(3).first(2).zero();
  for (const size_t p : {size_t{0}, size_t{2}}) {
    EXPECT_EQ(sum(s.tensor(p).slice(0, 0, 2)), 0) << p;
    EXPECT_EQ(sum(s.tensor(p).slice(0, 2, 3)),
              7.0 * static_cast<double>(s.parts()[p].shape.numel()))
        << p;
  }
}

}  // namespace
}  // namespace krait::nn
