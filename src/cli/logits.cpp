// krait logits: the logits of token sequences, from the first token on, or of images, as an array.
#include <CLI/CLI.hpp>

#include "krait/autograd/plan.h"
#include "krait/base/log.h"
#include "krait/cli/commands.h"
#include "krait/cli/model_args.h"
#include "krait/cli/progress.h"
#include "krait/infer/document_reader.h"
#include "krait/io/npy.h"
#include "krait/io/vision.h"

namespace krait::cli {

namespace {

struct Args {
  ModelArgs model;
  std::string tokens, input, out;
  bool last = false, average = false;
};

void report(const Args& a, const Common& common, const Shape& shape) {
  if (!common.json) return;
  OrderedJson sizes;
  for (int i = 0; i < shape.rank; ++i) sizes.push_back(shape[i]);
  print_json({{"out", a.out}, {"shape", sizes}});
}

constexpr int64_t kImages = 8;  // of one pass

int run_images(const Args& a, const Common& common) {
  require(is_vision_model(a.model.model),
          "{}: --input is for models of images; this one reads --tokens", a.model.model);
  const TensorFile file = read_npy(a.input);
  const Tensor images = file.tensors()[0].view;
  require(images.dtype == DType::f32 && images.rank() == 4 && images.numel() > 0,
          "{}: expected normalised float32 images (B, 3, H, W), got {} {}", a.input,
          name_of(images.dtype), images.shape);
  common.resolved_device();
  LoadOptions options;
  options.dtype = common.chosen_dtype();
  const LoadedVision loaded = load_vision_model(a.model.model, options, a.average);
  for (const std::string& note : loaded.notes) spdlog::warn("{}: {}", a.model.model, note);
  const models::VisionMamba& model = *loaded.model;
  const int64_t B = images.size(0);
  const Shape shape{B, model.config().classes};
  Context c;
  c.activation = loaded.dtype;
  Arena none(0);
  c.arena = &none;
  const Tensor some = images.slice(0, 0, std::min(B, kImages));
  Arena arena(plan(c, false, [&](Context& p) { model.logits(p, some); }).bytes);
  c.arena = &arena;
  NpyWriter out(a.out, DType::f32, shape);
  Progress progress("images", B, common.quiet);
  for (int64_t b = 0; b < B; b += kImages) {
    check_interrupt();
    arena.reset();
    const int64_t end = std::min(B, b + kImages);
    out.write(model.logits(c, images.slice(0, b, end)));
    progress.add(end - b);
  }
  out.commit();
  report(a, common, shape);
  return kDone;
}

int run_logits(const Args& a, const Common& common) {
  if (!a.input.empty()) return run_images(a, common);
  const TensorFile file = read_npy(a.tokens);
  Tensor tokens = file.tensors()[0].view;
  if (tokens.rank() == 1) tokens = tokens.reshape({1, tokens.size(0)});
  require(tokens.rank() == 2 && tokens.numel() > 0,
          "{}: expected token ids (B, L), both at least 1, got {}", a.tokens, tokens.shape);
  const int64_t B = tokens.size(0), L = tokens.size(1);
  const LoadedModel loaded = a.model.load(common);
  const models::LanguageModel& model = *loaded.model;
  const int64_t V = model.config().padded_vocab();

  const Shape shape = a.last ? Shape{B, V} : Shape{B, L, V};
  // Every id is looked at before the first byte is written.
  for (int64_t b = 0; b < B; ++b)
    ids_of(tokens.select(0, b), model.config().vocab_size, fmt::format("{}: row {}", a.tokens, b));
  NpyWriter out(a.out, DType::f32, shape);
  Progress progress("tokens", tokens.numel(), common.quiet);
  const auto write = [&](Context& c, const Tensor& hidden, const DocumentPass& pass) {
    check_interrupt();
    if (!c.planning()) progress.add(hidden.size(1));
    const Tensor rows = c.planning() || !a.last ? hidden : gather_rows(c, hidden, pass.ends);
    each_logits(c, model, rows, [&](int64_t, const Tensor& logits) {
      if (!c.planning()) out.write(logits);
    });
  };
  DocumentReader reader(model, loaded.dtype, write);
  for (int64_t b = 0; b < B; ++b) {
    reader.begin();
    reader.add(ids_of(tokens.select(0, b), model.config().vocab_size, a.tokens));
    reader.end();
  }
  reader.finish();
  out.commit();
  report(a, common, shape);
  return kDone;
}

}  // namespace

Work add_logits(CLI::App& app) {
  const auto a = std::make_shared<Args>();
  a->model.add(app);
  auto* const input = app.add_option_group("input");
  input->add_option("--tokens", a->tokens, "int32 or int64 (B, L), or (L) for one row: .npy");
  input->add_option("--input", a->input, "normalised float32 images (B, 3, H, W): .npy");
  input->require_option(1);
  app.add_option("--out", a->out,
                 "float32 (B, L, V), the row of token t predicts token t+1, or (B, classes): .npy")
      ->required();
  app.add_flag("--last", a->last, "only the logits of the last tokens: (B, V)");
  app.add_flag("--ema", a->average, "the moving average of the weights in a .pth of Vision Mamba");
  return [a](const Common& common) { return run_logits(*a, common); };
}

}  // namespace krait::cli
