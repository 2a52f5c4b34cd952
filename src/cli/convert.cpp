// krait convert: the same weights in the other published layout, or in another number type.
#include <CLI/CLI.hpp>
#include <filesystem>

#include "krait/base/file.h"
#include "krait/cli/commands.h"
#include "krait/cli/model_args.h"
#include "krait/io/vision.h"

namespace krait::cli {

namespace {

namespace fs = std::filesystem;

struct Args {
  std::string model, out, layout;
  bool average = false;
  VisionSize size;
};

// What belongs to a tokenizer or to text generation, and does not depend on the layout.
constexpr const char* kBeside[] = {"tokenizer.json",
                                   "tokenizer_config.json",
                                   "special_tokens_map.json",
                                   "added_tokens.json",
                                   "vocab.json",
                                   "merges.txt",
                                   "tokenizer.model",
                                   "generation_config.json"};

bool is_free(const fs::path& out) {
  return !fs::exists(out) || (fs::is_directory(out) && fs::is_empty(out));
}

void report(const Args& a, const Common& common, const char* layout, DType dtype,
            const nn::ParamSet& params) {
  if (!common.json) return;
  print_json({{"out", a.out},
              {"layout", layout},
              {"dtype", name_of(dtype)},
              {"parameters", params.numel()}});
}

int convert_vision(const Args& a, const Common& common) {
  require(a.layout != "original", "models of images are written in the Hugging Face layout only");
  const LoadedVision loaded =
      load_vision_model(a.model, {nn::Purpose::inference, DType::f32}, a.average, a.size);
  const DType dtype = common.chosen_dtype().value_or(loaded.stored);
  write_directory(a.out,
                  [&](const fs::path& folder) { save_vision_model(*loaded.model, folder, dtype); });
  report(a, common, "huggingface", dtype, loaded.model->params());
  return kDone;
}

int run_convert(const Args& a, const Common& common) {
  require(is_free(a.out), "{}: it is already there; remove it, or name another folder", a.out);
  if (is_vision_model(a.model)) return convert_vision(a, common);
  refuse_average(a.average, a.model);
  require(a.size.image == 0 && a.size.stride == 0,
          "{}: --image-size and --stride are for models of images", a.model);
  // Through float32: exact for every stored type.
  const LoadedModel loaded = load_model(a.model, {nn::Purpose::inference, DType::f32});
  const Layout layout = a.layout.empty()            ? loaded.layout
                        : a.layout == "huggingface" ? Layout::huggingface
                                                    : Layout::original;
  const DType dtype = common.chosen_dtype().value_or(loaded.stored);
  write_directory(a.out, [&](const fs::path& folder) {
    save_model(*loaded.model, folder, layout, dtype);
    for (const char* name : kBeside)
      if (const fs::path from = fs::path(a.model) / name; fs::exists(from))
        write_file(folder / name, read_file(from));
  });
  report(a, common, layout == Layout::huggingface ? "huggingface" : "original", dtype,
         loaded.model->params());
  return kDone;
}

}  // namespace

Work add_convert(CLI::App& app) {
  const auto a = std::make_shared<Args>();
  app.add_option("MODEL", a->model, "folder with config.json and weights")->required();
  app.add_option("OUT", a->out, "folder to write; must not be there yet")->required();
  app.add_option("--layout", a->layout, "huggingface or original; default: as MODEL")
      ->check(CLI::IsMember({"huggingface", "original"}));
  add_ema(app, a->average);
  app.add_option("--image-size", a->size.image,
                 "of models of images: the learned positions are resized for images of this size")
      ->check(CLI::Range(1, 1 << 15));
  app.add_option("--stride", a->size.stride, "of models of images: pixels from patch to patch")
      ->check(CLI::Range(1, 1 << 15));
  return [a](const Common& common) { return run_convert(*a, common); };
}

}  // namespace krait::cli
