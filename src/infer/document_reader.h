// Documents of any number and length through a model: cut into passes of one size, short ones packed side
// by side, the state of a long one carried from pass to pass. Memory depends on neither.
#pragma once
#include <functional>
#include <span>
#include <vector>

#include "krait/infer/runner.h"

namespace krait {

// What one pass has read: T tokens, which continue in order where the last pass ended.
struct DocumentPass {
  std::span<const int32_t> tokens;
  // (T) the next token of the same document; -1: none, or not asked for
  std::span<const int32_t> targets;
  std::span<const int64_t> ends;  // places of the last tokens of documents, and before restarts
};

class DocumentReader {
 public:
  // hidden (1, T, D). While planning the pass is empty: all of its targets are asked for.
  using Use = std::function<void(Context&, const Tensor& hidden, const DocumentPass&)>;

  // The model must outlive the reader.
  DocumentReader(const models::LanguageModel& model, DType activation, Use use,
                 int64_t chunk = 512);

  // The next document starts. Targets are asked for from its token `first_target` on (0 is never predicted).
  void begin(int64_t first_target = 1);
  void add(std::span<const int32_t> tokens);
  void end();
  // The document goes on, but from the zero state: its next token is predicted as any other, but
  // what came before is forgotten.
  void restart();
  // Runs what still waits for a full pass.
  void finish();

  int64_t tokens() const { return tokens_seen_; }

 private:
  void run(int64_t n);  // the first n tokens that wait

  Use use_;
  int64_t chunk_;
  nn::State carried_, next_;    // of the document that goes on in the next pass
  bool continues_ = false;      // the first waiting token belongs to it
  int64_t carried_tokens_ = 0;  // that it holds
  int64_t first_target_ = 1, in_document_ = 0, tokens_seen_ = 0;
  std::vector<int32_t> tokens_, targets_;
  std::vector<int64_t> ends_;  // into tokens_
  std::vector<Sequence> sequences_;
  DocumentPass pass_;
  Runner runner_;
};

}  // namespace krait
