// How well a model predicts: the exact likelihood of documents, and the last word of passages (LAMBADA).
#pragma once
#include <functional>
#include <span>
#include <vector>

#include "krait/infer/document_reader.h"

namespace krait {

// The likelihood of documents, each from the zero state on, its state carried to its end. The first token of
// a document is not predicted. Where positions run out (MoE-Mamba's table) a document goes on from the zero state.
class Likelihood {
 public:
  // `each` gets the nll of every predicted token, in order, a pass at a time.
  Likelihood(const models::LanguageModel& model, DType activation,
             std::function<void(std::span<const float>)> each = {});

  void begin();
  void add(std::span<const int32_t> tokens);
  void end() { reader_.end(); }
  void finish() { reader_.finish(); }

  int64_t tokens() const { return reader_.tokens(); }
  int64_t predicted() const { return predicted_; }
  double total() const { return total_; }  // Σ nll in nats
  bool cut() const { return cut_; }        // a document was longer than the model has positions

 private:
  void use(Context& c, const Tensor& hidden, const DocumentPass& pass);

  const models::LanguageModel& model_;
  std::function<void(std::span<const float>)> each_;
  int64_t since_zero_ = 0;  // tokens of the document since the zero state
  bool cut_ = false;
  int64_t predicted_ = 0;
  double total_ = 0;
  std::vector<float> nll_;
  Staging staging_;
  DocumentReader reader_;
};

// The last tokens of passages, all of which must be the most probable ones.
class LastWord {
 public:
  LastWord(const models::LanguageModel& model, DType activation);

  // `target` follows `context`; neither is empty.
  void add(std::span<const int32_t> context, std::span<const int32_t> target);
  void finish() { reader_.finish(); }

  int64_t passages() const { return passages_; }
  int64_t right() const { return right_; }
  double total() const { return total_; }  // Σ nll of the targets in nats
  int64_t tokens() const { return reader_.tokens(); }

 private:
  void use(Context& c, const Tensor& hidden, const DocumentPass& pass);

  const models::LanguageModel& model_;
  int64_t passages_ = 0, right_ = 0;
  double total_ = 0;
  bool all_right_ = true;  // of the passage that is not at its end
  DocumentReader reader_;
};

}  // namespace krait
