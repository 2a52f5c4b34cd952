// Passes of a language model over sequences of any lengths, packed side by side, in memory that was
// planned before the first one; no pad token exists. How much scratch an op takes may depend on the lengths in
// ways that no largest pass bounds: each pass is planned before it runs, and one that needs more gets it.
#pragma once
#include <array>
#include <functional>
#include <span>
#include <vector>

#include "krait/models/language_model.h"
#include "krait/tensor/graph.h"

namespace krait {

// Where one sequence of a pass starts and ends: rows of the state; -1: from zero, or dropped.
struct Sequence {
  int64_t tokens = 0;
  int32_t state_in = -1, state_out = -1;
};

// The largest pass.
struct PassLimits {
  DType activation = DType::f32;
  int64_t tokens = 512;   // of a packed pass, over all sequences
  int64_t sequences = 1;  // of a packed pass, and rows of a step
  int64_t context = 0;    // capacity of states that grow; with a larger one a runner plans anew
  DType scan_state = DType::f32;
};

// What is done with what the head would read: (1, T, D) of a packed pass, (B, 1, D) of a step. Must take
// no more memory than when planned for as many tokens; Context::planning() says when it is.
using UseHidden = std::function<void(Context&, const Tensor& hidden)>;

// Bytes of working memory that passes within the limits need, but for some of many sequences. The model's parameters
// must be allocated, if only for planning.
size_t plan_passes(const models::LanguageModel& model, const PassLimits& limits,
                   const UseHidden& use);

// What is queued behind a step, and recorded with it; `id` is that of no other work. Takes no memory of the context.
struct Behind {
  uint64_t id = 0;
  std::function<void(Context&)> work;
};

class Runner {
 public:
  // The model must outlive the runner.
  Runner(const models::LanguageModel& model, const PassLimits& limits, UseHidden use);

  // Sequences one behind the other in `tokens`, none empty. `in` and `out` may be one state where no sequence
  // moves from row to row. Error for a token outside the vocabulary, before anything runs.
  void packed(std::span<const int32_t> tokens, std::span<const Sequence> sequences,
              const nn::State& in, nn::State& out);
  // One token for each row of the state.
  void step(std::span<const int32_t> tokens, nn::State& state);
  // The same with tokens (B) int32 on the model's device, all of them in the vocabulary. Waits for
  // nothing.
  void step(const Tensor& tokens, nn::State& state, const Behind& behind = {});

  Context& context() { return context_; }
  const models::LanguageModel& model() const { return model_; }
  const PassLimits& limits() const { return limits_; }
  size_t bytes() const { return arena_.capacity(); }

 private:
  Tensor put_tokens(size_t place, std::span<const int32_t> tokens, const Shape& shape);
  void make_room(const nn::State& in, const nn::State& out);
  void make_room(int64_t tokens, const ops::Packing& packing);
  void take(size_t bytes);
  Tensor hidden(const Tensor& tokens, const ops::Packing* packing, const nn::State& in,
                nn::State& out);

  // What a recorded pass depends on besides what stands in its memory.
  struct Key {
    int64_t tokens = 0, sequences = 0, longest = 0;
    std::array<const void*, 6> memory{};
    uint64_t behind = 0;
    bool operator==(const Key&) const = default;
  };
  struct Recorded {
    Key key;
    Graph graph;
    Tensor hidden;
    size_t low = 0;  // of the arena behind it
  };
  bool comes_again(Recorded& last, const Key& key) const;

  const models::LanguageModel& model_;
  PassLimits limits_;
  UseHidden use_;
  Arena arena_;
  OwnStream stream_;
  Staging staging_;
  Context context_;
  std::vector<int64_t> begin_;
  std::vector<int32_t> state_in_, state_out_;
  Recorded steps_, passes_;  // the last of each kind
};

// Logits of rows of `hidden`, which is seen as (rows, D), a block of rows at a time so that memory does not
// grow with them: take(first row, logits (n, V) float32 in the host's memory).
void each_logits(Context& c, const models::LanguageModel& model, const Tensor& hidden,
                 const std::function<void(int64_t, const Tensor&)>& take);

// hidden seen as (rows, D) -> (n, D): the rows at `index`.
Tensor gather_rows(Context& c, const Tensor& hidden, std::span<const int64_t> index);

}  // namespace krait
