// A session: B sequences that are read and continued token by token. What a sequence remembers is a
// value: taken out at any token (snapshot), put back (rewind), put into several rows (fork), or kept in a
// file (krait/infer/state_file.h).
#pragma once
#include <functional>
#include <span>
#include <vector>

#include "krait/infer/runner.h"
#include "krait/ops/sampler/sampler.h"

namespace krait {

// One sequence after some token: its state, and the logits of the next one. May be restored any number of times; a
// second one is {s.state.clone(), s.logits, s.tokens}.
struct Snapshot {
  nn::State state;            // one row
  std::vector<float> logits;  // V, empty before the first token
  int64_t tokens = 0;         // read so far
};

struct SessionOptions {
  int64_t batch = 1;  // B
  DType activation = DType::f32;
  DType scan_state = DType::f32;  // what states of scans are kept in; their arithmetic is float32
  // tokens of a pass over prompts, over all rows; 0: as many as fill the device
  int64_t chunk = 0;
  // Tokens of a sequence that growing states (keys and values) have room for at first. Where that
  // is not enough the session makes larger ones and copies what was read; Error where memory does
  // not suffice.
  int64_t context = 0;
  std::function<void(int64_t tokens)> after_pass;  // progress of read(); may throw to stop it

  nn::StateTypes state_types() const { return {activation, scan_state}; }
};

// What a session takes, beside the model's own file in memory.
struct SessionPlan {
  size_t weights = 0;  // all parameters, mapped or converted
  size_t state = 0;    // of all rows
  size_t logits = 0;
  size_t working = 0;  // the arena of a pass
  size_t total() const { return weights + state + logits + working; }
};
SessionPlan plan_session(const models::LanguageModel& model, const SessionOptions& options);

class Session {
 public:
  // The model must outlive the session. Error where the plan does not fit into the machine's free memory,
  // before any of it is taken.
  Session(const models::LanguageModel& model, const SessionOptions& options);

  int64_t batch() const { return static_cast<int64_t>(tokens_read_.size()); }
  int64_t tokens_read(int64_t row) const { return tokens_read_[static_cast<size_t>(row)]; }

  // Row b reads rows[b], from wherever it is; rows may be of any lengths, or empty. In passes of bounded
  // size: memory does not depend on lengths.
  void read(std::span<const std::span<const int32_t>> rows);
  // Every row reads one token.
  void step(std::span<const int32_t> tokens);
  // The same with tokens (B) int32 that were drawn on the session's device. Waits for nothing.
  void step(const Tensor& tokens);
  // The same with those that `sampler` drew, which then draws what comes behind them (ops::Sampler::draw_next).
  void step_and_draw(ops::Sampler& sampler);

  // (B, V) float32 on the model's device: what each row predicts next. Valid until the next call
  // that reads. Rows that have read nothing hold NaN.
  const Tensor& logits() const { return logits_; }

  Snapshot snapshot(int64_t row) const;
  void restore(int64_t row, const Snapshot& s);
  // Row i goes on as what was row rows[i]; the others are dropped. Ascending, without repeats.
  void keep_rows(std::span<const int64_t> rows);
  // Rows [0, n) exist again, n <= SessionOptions::batch, and have read nothing.
  void restart(int64_t n);

  Context& context() { return runner_.context(); }
  const models::LanguageModel& model() const { return model_; }

 private:
  void take_logits(Context& c, const Tensor& hidden);
  void run_pass();
  void forget_pass();
  void view_rows();
  void make_room(int64_t tokens);  // in every row
  template <class Run>
  void step_rows(int64_t n, const Run& run);
  // (n, V) of the rows from `row` on.
  Tensor logits_of(int64_t row, int64_t n) const {
    return Tensor(logits_memory_.data() + static_cast<size_t>(row * vocab_) * sizeof(float),
                  DType::f32, {n, vocab_}, logits_memory_.device());
  }

  const models::LanguageModel& model_;
  SessionOptions options_;
  int64_t vocab_;          // V
  nn::State all_, state_;  // every row, and a view of those in use
  DeviceMemory logits_memory_;
  Tensor logits_;
  std::vector<int64_t> tokens_read_;
  // In the pass that runs: places of the tokens whose logits are wanted, and the rows that they
  // belong to.
  std::vector<int64_t> ends_, end_rows_;
  std::vector<int32_t> pass_tokens_;
  std::vector<Sequence> pass_sequences_;
  Runner runner_;
};

}  // namespace krait
