// An architecture is one file here: it reads its config.json, builds its layers and names its presets.
// To add one: write that file, declare its record below, list it in architecture.cpp.
#pragma once
#include <functional>
#include <limits>

#include "krait/base/json.h"
#include "krait/models/config.h"
#include "krait/nn/block.h"

namespace krait::models {

// What stands between the embedding and the last norm.
class Body {
 public:
  virtual ~Body() = default;
  virtual void check(const Config&) const = 0;  // Error for sizes that cannot be
  // Tokens of the longest sequence that can be trained on.
  virtual int64_t longest(const Config&) const { return std::numeric_limits<int64_t>::max(); }
  // All layers, first to last: each by itself, unless they share parameters. They are registered under the
  // names of published files.
  virtual std::vector<std::unique_ptr<nn::Block>> layers(nn::ParamSet& params,
                                                         const Config& config) const;
  // The config.json in a layout, without "torch_dtype". Error where the layout cannot express the
  // model.
  virtual OrderedJson json(const Config& config, Layout layout) const = 0;

 protected:
  // Layer i. A body overrides this or `layers`.
  virtual std::unique_ptr<nn::Block> layer(nn::ParamSet& params, const Config& config,
                                           int64_t i) const;
};

// The shape of a stored tensor, or null.
using ShapeOf = std::function<const Shape*(const std::string& name)>;

struct Architecture {
  const char* name;  // as `model_type` names it
  bool (*claims)(const JsonView& config, Layout layout);
  Config (*read)(const JsonView& config, Layout layout);
  std::vector<std::string> (*presets)();
  Config (*preset)(const std::string& name);  // one of presets()
  // Corrects sizes that the stored tensors' shapes contradict, with a note for each; may be null.
  void (*follow)(Config& config, const ShapeOf& shape_of,
                 std::vector<std::string>& notes) = nullptr;
};

// One a line.
// clang-format off
extern const Architecture kMamba1;
extern const Architecture kFalconMamba;
extern const Architecture kMoeMamba;
extern const Architecture kTransformerpp;
extern const Architecture kLlama;
extern const Architecture kGptNeox;
extern const Architecture kMamba2;
extern const Architecture kMamba3;
extern const Architecture kS4;
extern const Architecture kBlocks;
extern const Architecture kMamba2Hybrid;
extern const Architecture kJamba;
extern const Architecture kBamba;
extern const Architecture kNemotronH;
extern const Architecture kFalconH1;
extern const Architecture kZamba2;
// clang-format on

const std::vector<const Architecture*>& architectures();
const Architecture& architecture(const std::string& name);

// A norm over the residual stream, of the kind that the config names.
nn::Norm make_norm(nn::ParamSet& params, const std::string& name, const Config& config);

// Sets `value` to what the weights say, with a note where the config said otherwise.
void follow_weights(const char* what, int64_t& value, int64_t found,
                    std::vector<std::string>& notes);
void follow_weights(const char* what, bool& value, bool found, std::vector<std::string>& notes);

// Keys that several architectures share.
std::vector<int32_t> eos_ids(const JsonView& config);     // "eos_token_id": one, several or none
void write_eos(OrderedJson& json, const Config& config);  // and "bos_token_id", "pad_token_id"
// Reads the shell (sizes, norm, ties, ends) by the keys of Hugging Face's models with an RMS norm.
// `config` comes with the defaults of missing keys.
void read_shell(const JsonView& json, Config& config);
// Writes "model_type", which is the architecture's name, and the sizes of the shell.
void write_shell(OrderedJson& json, const Config& config);
// A config.json with these and transformers' class ("architectures"), for models that only Hugging
// Face's layout can say. Error, which calls the model `title`, for another layout.
OrderedJson huggingface_json(const Config& config, Layout layout, const char* title,
                             const char* transformers_class);
// Error where the key is there and says anything but `text`.
void expect_text(const JsonView& config, const char* key, const char* text);
// The numbers of layers in a list; none: no such key.
std::vector<int64_t> layer_list(const JsonView& config, const char* key);
// A list of as many numbers as the fallback has; they may be infinite.
std::vector<double> numbers(const JsonView& config, const char* key, std::vector<double> fallback);
// "id2label": {"0": "cat", "1": "dog"}, the names of classes; none: no such key.
std::vector<std::string> read_labels(const JsonView& config);
void write_labels(OrderedJson& json, const std::vector<std::string>& labels);
int64_t expanded(double expand, int64_t D);  // expand · D, rounded down; 0: no size
OrderedJson expansion(int64_t E,
                      int64_t D);  // E / D; transformers takes whole numbers without a point only
double shortest(float value);      // 1e-5f -> 1e-05, not 9.99999974737875e-06

}  // namespace krait::models
