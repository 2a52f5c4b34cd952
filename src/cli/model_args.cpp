#include "krait/cli/model_args.h"

#include <CLI/CLI.hpp>

#include "krait/base/file.h"
#include "krait/base/log.h"
#include "krait/io/any_model.h"

namespace krait::cli {

void ModelArgs::add(CLI::App& app) {
  app.add_option("MODEL", model, "folder with config.json and weights, of either published layout")
      ->required();
  app.add_option(
      "--tokenizer", tokenizer,
      "a tokenizer.json, or bytes; default: the one in MODEL, or bytes for a vocabulary of 256");
}

AnyConfig ModelArgs::config() const {
  require(std::filesystem::exists(model),
          "{}: expected a model directory (config.json with its weights)", model);
  return read_any_config(model);
}

static LoadOptions options_of(const Common& common) {
  LoadOptions options;
  options.device = common.resolved_device();
  options.dtype = common.chosen_dtype();
  return options;
}

static void warn(const std::string& model, const std::vector<std::string>& notes) {
  for (const std::string& note : notes) spdlog::warn("{}: {}", model, note);
}

LoadedModel ModelArgs::load(const Common& common, bool average) const {
  refuse_average(average, model);
  require(
      !std::filesystem::exists(model) || !judges_examples(read_any_config(model)),
      "{}: this model judges images or sequences as a whole and predicts no tokens; krait eval and "
      "krait logits say what it makes of them",
      model);
  LoadedModel loaded = load_model(model, options_of(common));
  warn(model, loaded.notes);
  return loaded;
}

LoadedAny ModelArgs::load_any(const Common& common, bool average) const {
  LoadedAny loaded = load_any_model(model, options_of(common), average);
  warn(model, loaded.notes);
  return loaded;
}

void check_place(const std::filesystem::path& file) {
  namespace fs = std::filesystem;
  std::error_code ec;
  const fs::file_type is = fs::status(file, ec).type();
  if (file.empty() || is == fs::file_type::fifo || is == fs::file_type::character) return;
  const FileWriter probe(file);  // and nothing is written
}

void add_ema(CLI::App& app, bool& average) {
  app.add_flag("--ema", average, "the moving average of the weights in a .pth of Vision Mamba");
}

void add_state_dtype(CLI::App& app, DType& scan_state) {
  app.add_option_function<std::string>(
         "--state-dtype",
         [&scan_state](const std::string& name) {
           scan_state = name == "bfloat16" ? DType::bf16 : DType::f32;
         },
         "float32 (default) or bfloat16: what states of scans are kept in from token to token")
      ->check(CLI::IsMember({"float32", "bfloat16"}));
}

CLI::Option* add_recompute(CLI::App& app, Recompute& recompute) {
  return app
      .add_option_function<std::string>(
          "--recompute",
          [&recompute](const std::string& name) {
            recompute = name == "none"    ? Recompute::none
                        : name == "layer" ? Recompute::layer
                                          : Recompute::cheap;
          },
          "what backward runs again, for less memory: none, cheap (default: what is hardly worth "
          "keeping) or layer (whole layers)")
      ->check(CLI::IsMember({"none", "cheap", "layer"}));
}

bool reads_bytes(const std::string& option, const std::filesystem::path& model,
                 int64_t vocab_size) {
  if (!option.empty()) return option == "bytes";
  return vocab_size == 256 && !std::filesystem::exists(model / "tokenizer.json");
}

std::unique_ptr<Tokenizer> find_tokenizer(const std::string& option,
                                          const std::filesystem::path& model, int64_t vocab_size) {
  if (reads_bytes(option, model, vocab_size)) return byte_tokenizer();
  if (!option.empty()) return load_tokenizer(option);
  const std::filesystem::path beside = model / "tokenizer.json";
  return std::filesystem::exists(beside) ? load_tokenizer(beside) : nullptr;
}

std::unique_ptr<Tokenizer> need_tokenizer(const std::string& option,
                                          const std::filesystem::path& model, int64_t vocab_size) {
  std::unique_ptr<Tokenizer> t = find_tokenizer(option, model, vocab_size);
  require(t != nullptr, "{}: there is no tokenizer.json in it; name one with --tokenizer FILE",
          model.string());
  return t;
}

std::vector<int32_t> ids_of(const Tensor& t, int64_t vocab_size, const std::string& where) {
  require(t.dtype == DType::i32 || t.dtype == DType::i64,
          "{}: expected token ids of int32 or int64, got {}", where, name_of(t.dtype));
  const auto n = static_cast<size_t>(t.numel());
  std::vector<int32_t> ids(n);
  for (size_t i = 0; i < n; ++i) {
    const int64_t id = t.dtype == DType::i32 ? static_cast<const int32_t*>(t.data)[i]
                                             : static_cast<const int64_t*>(t.data)[i];
    require(id >= 0 && id < vocab_size, "{}: token {}: id {} is outside the vocabulary of {}",
            where, i, id, vocab_size);
    ids[i] = static_cast<int32_t>(id);
  }
  return ids;
}

}  // namespace krait::cli
