// What a model is, independent of the file it came from: the shell that all share (embedding, residual
// stream, last norm, head) and the body that an architecture defines (see architecture.h).
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "krait/ops/norm/norm.h"

namespace krait::models {

// The two published kinds of model directory, told apart by "model_type" in config.json.
enum class Layout { huggingface, original };

// A tensor's name in the Hugging Face layout and, where it differs, in the original one.
struct TensorName {
  std::string name, original;
};

class Body;

// What the head says of what was read: the next token, or something of a sequence as a whole.
struct Task {
  enum Kind { language, classification, regression } kind = language;
  // Which vector of a sequence it judges by: its last, the mean of all, or that of a learned token behind it.
  enum Pooling { last, mean, token } pooling = last;
  int64_t outputs = 0;              // classes, or numbers
  std::vector<std::string> labels;  // names of the classes; may be empty
};

struct Config {
  std::string architecture;  // as `model_type` names it
  // the layout that it came in; it is written in the same unless asked otherwise
  Layout layout = Layout::huggingface;
  int64_t d_model = 0;  // D
  int64_t n_layer = 0;
  int64_t vocab_size = 0;      // ids below it may occur
  int64_t vocab_multiple = 1;  // the embedding has this many rows, rounded up: V
  bool tie_embeddings = true;
  ops::NormKind norm = ops::NormKind::rms;
  float norm_eps = 1e-5f;
  std::vector<int32_t> eos_ids;
  // constants that embeddings and logits are multiplied by (muP)
  float embedding_factor = 1, head_factor = 1;
  TensorName embedding = {"backbone.embeddings.weight", "backbone.embedding.weight"};
  int64_t positions = 0;  // tokens that a learned table of positions has room for; 0: no such table
  TensorName position_table = {"backbone.positions.weight", ""};
  std::string norm_f = "backbone.norm_f";  // empty: no last norm
  TensorName head = {"lm_head.weight", ""};
  Task task;
  int64_t inputs = 0;  // series of vectors of that many numbers are read; 0: tokens
  std::shared_ptr<const Body> body;

  int64_t padded_vocab() const {
    return (vocab_size + vocab_multiple - 1) / vocab_multiple * vocab_multiple;
  }
};

// "mamba-130m", "mambabyte-353m", "byte-small", ...; Error lists the names where there is no such one.
Config preset(const std::string& name);
std::vector<std::string> preset_names();

// Throws Error for sizes that no model can have (zero, negative, overflowing).
void check(const Config& config);
// The same for one size: `what` in a message of its own.
void check_size(const char* what, int64_t value, int64_t least, int64_t most);

}  // namespace krait::models
