// A step that is recorded once and replayed is the step that is queued launch by launch, to the bit.
#include <gtest/gtest.h>

#include "krait/io/model.h"
#include "krait/testing/files.h"
#include "krait/train/fixture.h"

namespace krait {
namespace {

using testing::byte_stream;
using testing::nursery_text;
using testing::small_model;
using testing::small_options;
using testing::weights;

constexpr int64_t kSteps = 8;

struct Trace {
  std::vector<double> losses, norms;
  std::vector<float> weights;
  int64_t replayed = 0;
};

void add(Trace& t, Trainer& trainer) {
  const StepResult r = trainer.step();
  t.losses.push_back(r.loss);
  t.norms.push_back(r.grad_norm);
}

// By one trainer, which records what it can, with the memory of a real run; `prepared`: the first step too.
Trace captured(const TokenStream& data, const TrainOptions& o, bool prepared = false) {
  const auto model = small_model(o.seed, o.dtype, purpose_of(o));
  Trainer trainer(*model, data, o);
  if (prepared) trainer.prepare();
  Trace t;
  for (int64_t s = 0; s < kSteps; ++s) add(t, trainer);
  t.weights = weights(*model);
  t.replayed = trainer.replayed();
  return t;
}

// By a new trainer for each step, which has nothing to replay, and gradients have memory of their own.
Trace eager(const TokenStream& data, const TrainOptions& o) {
  const auto model = small_model(o.seed, o.dtype);
  const testing::TempDir folder;
  Trace t;
  for (int64_t s = 0; s < kSteps; ++s) {
    Trainer trainer(*model, data, o);
    if (s > 0) trainer.load(folder.path());
    add(t, trainer);
    trainer.save(folder.path());
    t.replayed += trainer.replayed();
  }
  t.weights = weights(*model);
  return t;
}

void expect_same(const TokenStream& data, TrainOptions o, int64_t replayed) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    SCOPED_TRACE(name_of(dtype));
    o.dtype = dtype;
    const Trace a = captured(data, o), b = eager(data, o), c = captured(data, o, true);
    EXPECT_EQ(a.losses, b.losses);
    EXPECT_EQ(a.norms, b.norms);
    EXPECT_EQ(a.weights, b.weights);
    EXPECT_EQ(a.losses, c.losses);
    EXPECT_EQ(a.norms, c.norms);
    EXPECT_EQ(a.weights, c.weights);
    EXPECT_NE(a.losses[kSteps - 1], a.losses[kSteps - 2]);  // the data goes on
    EXPECT_EQ(b.replayed, 0);
    const bool gpu = testing::test_device().type == Device::cuda;
    EXPECT_EQ(a.replayed, gpu ? replayed : 0);
    EXPECT_EQ(c.replayed, gpu ? replayed + 1 : 0);
  }
}

// What changes from step to step: learning rate, bias corrections, the clip factor, the batch, the masks.
TrainOptions changing_options() {
  TrainOptions o = small_options();
  o.schedule = Schedule::cosine;
  o.warmup = 3;
  o.clip = 0.5f;
  o.dropout = 0.2f;
  return o;
}

TEST(CapturedStep, IsTheEagerOneWithDropoutAndASchedule) {
  expect_same(byte_stream({nursery_text(100)}), changing_options(), kSteps - 1);
}

TEST(CapturedStep, IsTheEagerOneWhereGradientsAccumulateAndLayersRunAgain) {
  TrainOptions o = changing_options();
  o.grad_accum = 3;
  o.recompute = Recompute::layer;
  expect_same(byte_stream({nursery_text(300)}), o, kSteps - 1);
}

// States in and out take turns: where a step is of an odd number of batches there are two kinds of steps, and
// the first one, which starts from nothing, is a third.
TEST(CapturedStep, IsTheEagerOneWithCarriedStates) {
  TrainOptions o = changing_options();
  o.order = Order::sequential;
  o.carry_state = true;
  expect_same(byte_stream({nursery_text(100)}), o, kSteps - 3);
}

// A step like none before it is queued launch by launch: packed batches, whose cut is another each time.
TEST(CapturedStep, PackedBatchesGoBetween) {
  const std::string text = nursery_text(60);
  std::vector<std::string> documents = {text.substr(0, 300), "hm", text.substr(300, 40),
                                        text.substr(340, 1500)};
  TrainOptions o = changing_options();
  o.order = Order::sequential;
  const TokenStream data = byte_stream(documents);
  const Trace a = captured(data, o), b = eager(data, o), c = captured(data, o, true);
  EXPECT_EQ(a.losses, b.losses);
  EXPECT_EQ(a.weights, b.weights);
  EXPECT_EQ(a.losses, c.losses);
  EXPECT_EQ(a.weights, c.weights);
  if (testing::test_device().type == Device::cuda) {
    EXPECT_GT(a.replayed, 0);
    EXPECT_LT(a.replayed, kSteps - 1);
  }
}

// As `krait train --resume` does: the first step is recorded before anyone knows which one it is.
TEST(CapturedStep, PreparedBeforeTheRunIsLoaded) {
  TrainOptions o = changing_options();
  o.order = Order::sequential;
  o.carry_state = true;
  const TokenStream data = byte_stream({nursery_text(100)});
  const Trace whole = captured(data, o);
  const auto model = small_model(o.seed, o.dtype, purpose_of(o));
  const testing::TempDir folder;
  Trace t;
  for (const int64_t end :
       {kSteps / 2 + 1, kSteps}) {  // in the second run the states have changed places
    Trainer trainer(*model, o);
    trainer.prepare();
    trainer.read(std::make_unique<Batcher>(
                     data, BatcherOptions{o.batch_size, o.seq_len, o.order, o.carry_state, o.seed}),
                 o.steps);
    if (!t.losses.empty()) trainer.load(folder.path());
    while (trainer.steps_done() < end) add(t, trainer);
    trainer.save(folder.path());
  }
  EXPECT_EQ(t.losses, whole.losses);
  EXPECT_EQ(t.norms, whole.norms);
  EXPECT_EQ(weights(*model), whole.weights);
}

// Validation between steps takes the same memory for other work, and may need more of it.
TEST(CapturedStep, IsTheEagerOneWithValidationBetween) {
  const TokenStream data = byte_stream({nursery_text(100)}),
                    valid = byte_stream({nursery_text(7), "x", nursery_text(20)});
  const TrainOptions o = changing_options();
  const Trace plain = captured(data, o);
  const auto model = small_model(o.seed, o.dtype);
  Trainer trainer(*model, data, o);
  Trace t;
  for (int64_t s = 0; s < kSteps; ++s) {
    add(t, trainer);
    if (s % 3 == 1) {
      EXPECT_TRUE(trainer.validate(valid).has_value());
    }
  }
  EXPECT_EQ(t.losses, plain.losses);
  EXPECT_EQ(weights(*model), plain.weights);
}

}  // namespace
}  // namespace krait
