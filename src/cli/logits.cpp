// krait logits: the logits of token sequences, from the first token on, as an array.
#include <CLI/CLI.hpp>

#include "krait/cli/commands.h"
#include "krait/cli/model_args.h"
#include "krait/cli/progress.h"
#include "krait/infer/document_reader.h"
#include "krait/io/npy.h"

namespace krait::cli {

namespace {

struct Args {
  ModelArgs model;
  std::string tokens, out;
  bool last = false;
};

int run_logits(const Args& a, const Common& common) {
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
  if (common.json) {
    OrderedJson shape_json;
    for (int i = 0; i < shape.rank; ++i) shape_json.push_back(shape[i]);
    print_json({{"out", a.out}, {"shape", shape_json}});
  }
  return kDone;
}

}  // namespace

Work add_logits(CLI::App& app) {
  const auto a = std::make_shared<Args>();
  a->model.add(app);
  app.add_option("--tokens", a->tokens, "int32 or int64 (B, L), or (L) for one row: .npy")
      ->required();
  app.add_option("--out", a->out, "float32 (B, L, V): .npy; the row of token t predicts token t+1")
      ->required();
  app.add_flag("--last", a->last, "only the logits of the last tokens: (B, V)");
  return [a](const Common& common) { return run_logits(*a, common); };
}

}  // namespace krait::cli
