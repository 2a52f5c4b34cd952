#include "krait/data/batcher.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "krait/testing/errors.h"

namespace krait {
namespace {

using Ids = std::vector<int32_t>;

// Documents of these lengths; token i has id i.
TokenStream counting(const std::vector<int>& lengths) {
  TokenStream s(100000);
  int32_t next = 0;
  for (const int n : lengths) {
    Ids ids(static_cast<size_t>(n));
    std::iota(ids.begin(), ids.end(), next);
    next += n;
    s.start_document();
    s.append(ids, "test");
  }
  return s;
}

TEST(Batcher, SequentialOrderIsTheOneOfTheContract) {
  const TokenStream s = counting({100});
  const int64_t B = 2, L = 8;
  Batcher batcher(s, {B, L, Order::sequential});
  EXPECT_EQ(batcher.rows(), 12);  // 99 / 8
  for (int64_t m = 0; m < 6; ++m) {
    const Batch batch = batcher.at(m);
    EXPECT_FALSE(batch.packed());
    EXPECT_EQ(batch.n_targets, B * L);
    for (int64_t b = 0; b < B; ++b)
      for (int64_t l = 0; l < L; ++l) {
        EXPECT_EQ(batch.tokens[static_cast<size_t>(b * L + l)], (m * B + b) * L + l);
        EXPECT_EQ(batch.targets[static_cast<size_t>(b * L + l)], (m * B + b) * L + l + 1);
      }
  }
  EXPECT_EQ(batcher.at(6).tokens, batcher.at(0).tokens);  // the next epoch
}

TEST(Batcher, ShuffleReadsEachWindowOnceAnEpochInAnOrderOfItsOwn) {
  const TokenStream s = counting({1001});
  const auto starts = [&](Batcher& batcher, int64_t from, int64_t batches) {
    Ids first;
    for (int64_t m = from; m < from + batches; ++m) {
      const Batch batch = batcher.at(m);
      for (int64_t b = 0; b < batch.B; ++b)
        first.push_back(batch.tokens[static_cast<size_t>(b * batch.L)]);
    }
    return first;
  };
  const BatcherOptions o{4, 10, Order::shuffle, false, 7};
  Batcher batcher(s, o);
  const Ids epoch0 = starts(batcher, 0, 25), epoch1 = starts(batcher, 25, 25);
  EXPECT_EQ(std::set<int32_t>(epoch0.begin(), epoch0.end()).size(), 100u);
  EXPECT_EQ(std::set<int32_t>(epoch1.begin(), epoch1.end()).size(), 100u);
  EXPECT_FALSE(std::is_sorted(epoch0.begin(), epoch0.end()));
  EXPECT_NE(epoch0, epoch1);
  // A function of the position alone: resumed in the middle, and backwards.
  Batcher again(s, o);
  EXPECT_EQ(starts(again, 30, 5), Ids(epoch1.begin() + 20, epoch1.begin() + 40));
  EXPECT_EQ(starts(again, 0, 25), epoch0);
  BatcherOptions other = o;
  other.seed = 8;
  Batcher seeded(s, other);
  EXPECT_NE(starts(seeded, 0, 25), epoch0);
}

TEST(Batcher, CarriedRowsReadStripesWithoutAGap) {
  const TokenStream s = counting({100});
  Batcher batcher(s, {3, 8, Order::sequential, true});
  EXPECT_EQ(batcher.rows(), 12);  // 3 stripes of 4
  for (int64_t m = 0; m < 4; ++m) {
    const Batch batch = batcher.at(m);
    EXPECT_EQ(batch.carried, m > 0);
    for (int64_t b = 0; b < 3; ++b)
      EXPECT_EQ(batch.tokens[static_cast<size_t>(b * 8)], (b * 4 + m) * 8);
  }
  EXPECT_FALSE(batcher.at(4).carried);  // the next epoch starts from zero
  EXPECT_EQ(batcher.at(4).tokens, batcher.at(0).tokens);
}

TEST(Batcher, OneCarriedRowReadsInSequentialOrder) {
  const TokenStream s = counting({77});
  Batcher carried(s, {1, 8, Order::sequential, true}), plain(s, {1, 8, Order::sequential});
  for (int64_t m = 0; m < 20; ++m) EXPECT_EQ(carried.at(m).tokens, plain.at(m).tokens);
}

TEST(Batcher, T25_DocumentsAreSequencesOfTheirOwn) {
  const TokenStream s = counting({5, 3, 8, 20});  // start at 0, 5, 8, 16
  const std::vector<int64_t> starts = {0, 8};
  const Batch batch = cut_batch(s, starts, 8, false);
  ASSERT_TRUE(batch.packed());
  EXPECT_EQ(batch.begin, (std::vector<int64_t>{0, 5, 8, 16}));
  EXPECT_EQ(batch.state_in, (Ids{-1, -1, -1}));
  EXPECT_EQ(batch.state_out, (Ids{-1, 0, 1}));
  EXPECT_EQ(batch.targets, (Ids{1, 2, 3, 4, -1, 6, 7, -1, 9, 10, 11, 12, 13, 14, 15, -1}));
  EXPECT_EQ(batch.n_targets, 13);
  const ops::Packing p = batch.packing();
  EXPECT_EQ(p.n, 3);
  EXPECT_EQ(p.longest, 8);
}

TEST(Batcher, T25_ACarriedStateStopsWhereADocumentStarts) {
  const TokenStream s = counting({8, 12, 10});  // start at 0, 8, 20
  const std::vector<int64_t> starts = {8, 16};
  const Batch batch = cut_batch(s, starts, 8, true);
  EXPECT_EQ(batch.begin, (std::vector<int64_t>{0, 8, 12, 16}));
  EXPECT_EQ(batch.state_in,
            (Ids{-1, 1, -1}));  // row 0 starts a document, row 1 is in the middle of one
  EXPECT_EQ(batch.state_out, (Ids{0, -1, 1}));
}

TEST(Batcher, TheLastTokenOfTheStreamHasNoTarget) {
  const TokenStream s = counting({5});
  const std::vector<int64_t> starts = {0};
  const Batch batch = cut_batch(s, starts, 5, false);
  EXPECT_EQ(batch.targets, (Ids{1, 2, 3, 4, -1}));
  EXPECT_FALSE(batch.packed());
}

TEST(Batcher, DataThatIsTooShortIsRefusedWithNumbers) {
  const TokenStream s = counting({8});
  const auto message = [&](const BatcherOptions& o) {
    return testing::error_of([&] { Batcher b(s, o); });
  };
  EXPECT_EQ(message({1, 8, Order::sequential}),
            "the data has 8 tokens, and one sequence of 8 with its targets needs 9");
  EXPECT_EQ(message({1, 7, Order::sequential}), "");
  EXPECT_EQ(message({1, 1, Order::sequential}), "");
  EXPECT_NE(message({8, 1, Order::sequential, true}).find("needs 9"), std::string::npos);
  EXPECT_NE(message({1, 1, Order::shuffle, true}), "");
  EXPECT_NE(message({1, 0, Order::sequential}), "");
}

TEST(TokenStream, KeepsIdsOfEveryWidth) {
  for (const int64_t vocab : {256, 257, 65536, 65537, 1 << 20}) {
    TokenStream s(vocab);
    const Ids ids = {0, static_cast<int32_t>(vocab - 1), 1};
    s.append(ids, "t");
    Ids got(3);
    s.read(0, 3, got.data());
    EXPECT_EQ(got, ids);
    EXPECT_THROW(s.append(Ids{static_cast<int32_t>(vocab)}, "t"), Error);
    EXPECT_THROW(s.append(Ids{-1}, "t"), Error);
  }
}

}  // namespace
}  // namespace krait
