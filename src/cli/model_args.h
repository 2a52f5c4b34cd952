// What the commands that run a model share: MODEL, --tokenizer, loading, reading documents as ids.
#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "krait/autograd/segment.h"
#include "krait/cli/command.h"
#include "krait/io/any_model.h"
#include "krait/io/model.h"
#include "krait/io/tokenizer/tokenizer.h"

namespace CLI {
class Option;
}

namespace krait::cli {

struct ModelArgs {
  std::string model;
  std::string tokenizer;  // --tokenizer: a file, "bytes" or ""

  void add(CLI::App& app);
  // Of a model that is there, whatever it reads.
  AnyConfig config() const;
  // For inference; what the loader has noticed goes to the log. `average`: see load_any_model.
  LoadedModel load(const Common& common, bool average = false) const;
  LoadedAny load_any(const Common& common, bool average) const;
};

// Error where `file`, unless it is "", could not be written: before the work whose result it would lose.
void check_place(const std::filesystem::path& file);

// --ema: see load_any_model.
void add_ema(CLI::App& app, bool& average);

// --state-dtype: what a session keeps states of scans in.
void add_state_dtype(CLI::App& app, DType& scan_state);

// --recompute: how much of a layer training computes again in backward.
CLI::Option* add_recompute(CLI::App& app, Recompute& recompute);

// Whether find_tokenizer gives bytes: then a text can be read in pieces.
bool reads_bytes(const std::string& option, const std::filesystem::path& model, int64_t vocab_size);

// As --tokenizer says, else tokenizer.json of the model's folder, else bytes for a vocabulary of 256. Null
// where there is none of these.
std::unique_ptr<Tokenizer> find_tokenizer(const std::string& option,
                                          const std::filesystem::path& model, int64_t vocab_size);
// The same; Error where there is none.
std::unique_ptr<Tokenizer> need_tokenizer(const std::string& option,
                                          const std::filesystem::path& model, int64_t vocab_size);

// The elements of an int32 or int64 tensor that are ids of a vocabulary. Error names `where` and the place.
std::vector<int32_t> ids_of(const Tensor& t, int64_t vocab_size, const std::string& where);

}  // namespace krait::cli
