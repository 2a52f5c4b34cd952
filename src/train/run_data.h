// What a run trains on and is validated with, of the kind that its model reads: a stream of tokens, or
// examples.
#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "krait/data/examples.h"
#include "krait/io/any_model.h"
#include "krait/io/tokenizer/tokenizer.h"
#include "krait/train/log.h"
#include "krait/train/trainer.h"

namespace krait {

// The text of a run's tokenizer.json ("" for bytes) and what it makes; null where there is none.
struct RunTokenizer {
  std::string json;
  std::unique_ptr<Tokenizer> tokenizer;
};

class RunData {
 public:
  // Lists images and reads sequences that are judged as a whole; texts are not read yet. `start`: the directory
  // that the weights come from; empty: a fresh model, whose config gets the names of the classes, and where it
  // is a preset their number. A head that the options ask for is described in the config.
  RunData(const RunOptions& o, const std::filesystem::path& start, AnyConfig& config);
  void read();

  std::unique_ptr<Batches> batches(const TrainOptions& o) const;
  const char* unit() const { return examples_ ? "examples" : "tokens"; }  // of what is read
  bool has_validation() const { return valid_tokens_ || valid_examples_; }
  // The loss and, of classes, the accuracy in a record of the log; neither where `stop` became true. See
  // Trainer::validate.
  void validate(Trainer& trainer, const std::function<bool()>& stop, LogRecord& record) const;
  const RunTokenizer& tokenizer() const { return tokenizer_; }

 private:
  void list_images(const RunOptions& o, bool fresh, models::VisionConfig& config);
  void read_sequences(const RunOptions& o, bool fresh, models::Config& config);

  std::vector<std::string> sources_, valid_sources_;
  int64_t vocab_size_ = 0;
  RunTokenizer tokenizer_;
  std::unique_ptr<TokenStream> tokens_, valid_tokens_;
  std::unique_ptr<Examples> examples_, valid_examples_;
};

}  // namespace krait
