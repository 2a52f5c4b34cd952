// krait logits: the logits of token sequences, from the first token on, or what a model says of images and
// sequences as a whole, as an array.
#include <CLI/CLI.hpp>

#include "krait/autograd/plan.h"
#include "krait/cli/commands.h"
#include "krait/cli/model_args.h"
#include "krait/cli/progress.h"
#include "krait/infer/document_reader.h"
#include "krait/io/any_model.h"
#include "krait/io/npy.h"
#include "krait/tensor/staging.h"

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

constexpr int64_t kRows = 8;  // of one pass

// The rows of `from`, each with `places` zero elements more.
template <class T>
std::vector<T> with_places(const Tensor& from, int64_t places) {
  const int64_t B = from.size(0), n = from.numel() / B;
  std::vector<T> rows(static_cast<size_t>(B * (n + places)), T(0));
  for (int64_t b = 0; b < B; ++b)
    for (int64_t i = 0; i < n; ++i)
      rows[static_cast<size_t>(b * (n + places) + i)] = static_cast<T>(get(from, b * n + i));
  return rows;
}

// What a model that judges images or sequences is fed of rows [begin, end) of the input.
class Rows {
 public:
  Rows(const models::Model& model, const Tensor& all, const std::string& where)
      : all_(all), like_(model.sketch(1, all.rank() > 1 ? all.size(1) : 1)) {
    const Tensor& like = like_.values ? like_.values : like_.tokens;
    bool fits = all.rank() == like.rank() && all.numel() > 0;
    for (int i = like.rank() == 4 ? 1 : 2; fits && i < like.rank(); ++i)
      fits = all.size(i) == like.size(i);
    fits = fits && (like_.tokens || all.dtype == DType::f32);
    Shape expected = like.shape;
    expected[0] = all.rank() > 0 ? all.size(0) : 1;
    require(fits, "{}: expected {} {}, got {} {}{}", where,
            like_.tokens ? "token ids" : "float32, normalised where these are images,", expected,
            name_of(all.dtype), all.shape,
            like.rank() == 4 && like.rank() == all.rank()
                ? "; krait convert makes a model of another --image-size and --stride"
                : "");
    if (const auto* language = dynamic_cast<const models::LanguageModel*>(&model); like_.tokens)
      ids_of(all, language->config().vocab_size, where);
  }

  models::Feed feed(int64_t begin, int64_t end) {
    const Tensor rows = all_.slice(0, begin, end);
    Tensor like = like_.values ? like_.values : like_.tokens;
    like.shape[0] = end - begin;
    const int64_t places = (like.numel() - rows.numel()) / (end - begin);
    if (like_.values) {
      values_ = with_places<float>(rows, places);
      return {.values = Tensor(values_.data(), DType::f32, like.shape)};
    }
    ids_ = with_places<int32_t>(rows, places);
    return {.tokens = Tensor(ids_.data(), DType::i32, like.shape)};
  }

 private:
  Tensor all_;
  models::Feed like_;
  std::vector<float> values_;
  std::vector<int32_t> ids_;
};

int run_judge(const Args& a, const Common& common, const AnyConfig& config) {
  const bool tokens = a.input.empty();
  const auto* const language = std::get_if<models::Config>(&config);
  require(tokens == (language && language->inputs == 0), "{}: this model reads {}", a.model.model,
          tokens ? "--input" : "--tokens");
  const std::string& where = tokens ? a.tokens : a.input;
  const TensorFile file = read_npy(where);
  const LoadedAny loaded = a.model.load_any(common, a.average);
  const models::Model& model = *loaded.model;
  Tensor all = file.tensors()[0].view;
  if (tokens && all.rank() == 1) all = all.reshape({1, all.size(0)});
  Rows rows(model, all, where);
  const int64_t B = all.size(0);
  const models::Feed some = rows.feed(0, std::min(B, kRows));
  const Device device = model.params().device();
  const OwnStream stream(device);
  Staging staging;
  Context c;
  c.device = device;
  c.stream = stream;
  c.activation = loaded.dtype;
  Arena none(0);
  c.arena = &none;
  const auto run = [&](Context& p, const models::Feed& feed) {
    return model.outputs(p, {staging.put(p, 0, feed.tokens), staging.put(p, 1, feed.values), {}},
                         {});
  };
  Shape shape;
  const size_t bytes = plan(c, false, [&](Context& p) { shape = run(p, some).shape; }).bytes;
  Arena arena(bytes, c.device);
  shape[0] = B;
  c.arena = &arena;
  NpyWriter out(a.out, DType::f32, shape);
  Progress progress("examples", B, common.quiet);
  for (int64_t b = 0; b < B; b += kRows) {
    check_interrupt();
    arena.reset();
    const int64_t end = std::min(B, b + kRows);
    std::vector<std::byte> buffer;
    out.write(on_host(run(c, rows.feed(b, end)), buffer));
    progress.add(end - b);
  }
  out.commit();
  report(a, common, shape);
  return kDone;
}

int run_logits(const Args& a, const Common& common) {
  const AnyConfig config = a.model.config();
  if (judges_examples(config)) return run_judge(a, common, config);
  require(a.input.empty(),
          "{}: --input is for models of images and series; this one reads --tokens", a.model.model);
  const TensorFile file = read_npy(a.tokens);
  Tensor tokens = file.tensors()[0].view;
  if (tokens.rank() == 1) tokens = tokens.reshape({1, tokens.size(0)});
  require(tokens.rank() == 2 && tokens.numel() > 0,
          "{}: expected token ids (B, L), both at least 1, got {}", a.tokens, tokens.shape);
  const int64_t B = tokens.size(0), L = tokens.size(1);
  const LoadedModel loaded = a.model.load(common, a.average);
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
  input->add_option("--input", a->input,
                    "float32 .npy: images (B, 3, H, W), normalised, or series (B, L, F)");
  input->require_option(1);
  app.add_option(
         "--out", a->out,
         "float32 (B, L, V), the row of token t predicts token t+1, or (B, classes) of what judges "
         "images or sequences: .npy")
      ->required();
  app.add_flag("--last", a->last, "only the logits of the last tokens: (B, V)");
  add_ema(app, a->average);
  return [a](const Common& common) { return run_logits(*a, common); };
}

}  // namespace krait::cli
