// What a decoded token takes from the heap: lists of tensor handles, the same for every token, given back
// before the next; never memory of a tensor, which was planned and taken before the first token.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "krait/ops/sampler/sampler.h"
#include "krait/testing/small_model.h"

namespace {
std::atomic<int64_t> taken{0}, given_back{0};
std::atomic<size_t> largest{0};
}  // namespace

// Not inlined: the compiler would see malloc meet delete.
[[gnu::noinline]] void* operator new(size_t n) {
  ++taken;
  if (n > largest) largest = n;
  if (void* p = std::malloc(n)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept {
  if (p) ++given_back;
  std::free(p);
}
[[gnu::noinline]] void operator delete(void* p, size_t) noexcept {
  if (p) ++given_back;
  std::free(p);
}

namespace krait {
namespace {

TEST(Decode, TakesNoMemoryButHandlesAndKeepsNone) {
  KRAIT_ONLY_ON_CPU("on a GPU a token is a replayed graph");
  const auto model = testing::small_model();
  int64_t expected = -1;
  for (const int64_t batch : {1, 3, 8}) {
    Session s = testing::session_of(*model, batch);
    const std::vector<testing::Ids> prompts(static_cast<size_t>(batch), testing::random_ids(9, 1));
    testing::read(s, prompts);
    testing::Ids next(static_cast<size_t>(batch), 5);
    const std::vector<ops::SampleRow> rows(static_cast<size_t>(batch));
    ops::SamplerOptions greedy;
    greedy.temperature = 0;
    const auto token = [&] {
      s.step(next);
      const auto drawn = ops::sample(s.context(), s.logits(), testing::kSmallVocab, greedy, rows);
      for (size_t b = 0; b < next.size(); ++b) next[b] = drawn[b].token;
    };
    token();  // the first one may set up what threads keep
    for (int i = 0; i < 20; ++i) {
      const int64_t taken_before = taken, live_before = taken - given_back;
      largest = 0;
      token();
      if (expected < 0) expected = taken - taken_before;
      EXPECT_EQ(taken - taken_before, expected) << "token " << i << ", batch " << batch;
      EXPECT_EQ(taken - given_back, live_before) << "token " << i << ", batch " << batch;
      EXPECT_LE(largest, 8 * sizeof(Tensor)) << "token " << i << ", batch " << batch;
    }
  }
}

}  // namespace
}  // namespace krait
