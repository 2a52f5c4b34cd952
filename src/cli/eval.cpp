// krait eval: the exact likelihood of documents, the state carried through each of them; the last words of
// passages (LAMBADA); or how well images and sequences are judged.
#include <CLI/CLI.hpp>
#include <cmath>
#include <filesystem>

#include "krait/base/clock.h"
#include "krait/base/log.h"
#include "krait/cli/commands.h"
#include "krait/cli/examples.h"
#include "krait/cli/model_args.h"
#include "krait/cli/progress.h"
#include "krait/data/judge.h"
#include "krait/data/text.h"
#include "krait/infer/evaluate.h"
#include "krait/io/any_model.h"
#include "krait/io/npy.h"

namespace krait::cli {

namespace {

struct Args {
  ModelArgs model;
  std::vector<std::string> data;
  std::string per_token, task;
  bool average = false;
};

struct Totals {
  int64_t documents = 0, bytes = 0;
  bool bytes_known = true;   // not where ids come from a file
  double bytes_a_token = 1;  // of what is being read
};

// What the sources take on the disk, as far as they are regular files.
int64_t bytes_of(const std::vector<std::string>& sources) {
  namespace fs = std::filesystem;
  int64_t bytes = 0;
  std::error_code ec;
  const auto add = [&](const fs::path& file) {
    std::error_code none;
    if (fs::is_regular_file(file, none)) bytes += static_cast<int64_t>(fs::file_size(file, none));
  };
  for (const std::string& source : sources) {
    add(source);
    for (fs::directory_iterator it(source, ec), end; !ec && it != end; it.increment(ec))
      add(it->path());
  }
  return bytes;
}

bool is_npy(const std::string& source) {
  return std::filesystem::path(source).extension() == ".npy";
}

// Each row of the array, along its last axis, is a document.
void read_array(const std::string& path, int64_t vocab_size, Likelihood& likelihood,
                Totals& totals) {
  const TensorFile file = read_npy(path);
  const Tensor all = file.tensors()[0].view;
  require(all.rank() > 0, "{}: expected rows of token ids, got one number", path);
  const int64_t rows = all.shape.rows(), L = rows == 0 ? 0 : all.size(-1);
  const Tensor table = all.reshape({rows, L});
  totals.bytes_a_token = static_cast<double>(size_of(all.dtype));
  constexpr int64_t kPiece = 1 << 16;
  for (int64_t r = 0; r < rows; ++r) {
    likelihood.begin();
    for (int64_t t = 0; t < L; t += kPiece)
      likelihood.add(ids_of(table.select(0, r).slice(0, t, std::min(L, t + kPiece)), vocab_size,
                            fmt::format("{}: row {}", path, r)));
    likelihood.end();
    ++totals.documents;
  }
  totals.bytes_known = false;
}

void read_text(const Args& a, int64_t vocab_size, Likelihood& likelihood, Totals& totals,
               const std::string& source, const Tokenizer& tokenizer) {
  // Bytes can be read in pieces; other tokens may cross any border of pieces.
  const size_t piece = reads_bytes(a.model.tokenizer, a.model.model, vocab_size)
                           ? size_t{1} << 16
                           : std::string::npos;
  read_documents(source, [&](std::string_view text, const std::string&) {
    likelihood.begin();
    for (size_t i = 0; i < text.size(); i += std::min(piece, text.size())) {
      const std::string_view part = text.substr(i, piece);
      const std::vector<int32_t> ids = tokenizer.encode(part, false);
      totals.bytes_a_token =
          static_cast<double>(part.size()) / static_cast<double>(std::max<size_t>(1, ids.size()));
      likelihood.add(ids);
    }
    likelihood.end();
    ++totals.documents;
    totals.bytes += static_cast<int64_t>(text.size());
  });
}

OrderedJson finite(double x) { return std::isfinite(x) ? OrderedJson(x) : OrderedJson(); }

void print_results(const OrderedJson& results, const Common& common) {
  if (common.json) return print_json(results);
  for (const auto& [key, value] : results.items())
    print_line("{}\t{}", key, value.is_null() ? "-" : value.dump());
}

int run_likelihood(const Args& a, const Common& common) {
  const LoadedModel loaded = a.model.load(common, a.average);
  const int64_t vocab = loaded.model->config().vocab_size;
  std::vector<float> nll;
  Totals totals;
  // How many tokens there are shows when they are read.
  Progress progress("bytes", bytes_of(a.data), common.quiet);
  Likelihood likelihood(*loaded.model, loaded.dtype, [&](std::span<const float> piece) {
    check_interrupt();
    progress.add(std::llround(static_cast<double>(piece.size()) * totals.bytes_a_token));
    if (!a.per_token.empty()) nll.insert(nll.end(), piece.begin(), piece.end());
  });
  std::unique_ptr<Tokenizer> tokenizer;
  const auto start = Clock::now();
  for (const std::string& source : a.data) {
    if (is_npy(source)) {
      read_array(source, vocab, likelihood, totals);
    } else {
      if (!tokenizer) tokenizer = need_tokenizer(a.model.tokenizer, a.model.model, vocab);
      read_text(a, vocab, likelihood, totals, source, *tokenizer);
    }
  }
  likelihood.finish();
  if (likelihood.cut())
    spdlog::warn(
        "documents longer than the {} positions of this model were read in pieces of as many "
        "tokens",
        loaded.model->config().positions);
  const double seconds = seconds_since(start);
  require(likelihood.predicted() > 0,
          "--data: nothing to predict: {} documents with {} tokens in all; the first token of a "
          "document is not predicted",
          totals.documents, likelihood.tokens());

  const double mean = likelihood.total() / static_cast<double>(likelihood.predicted());
  const bool with_bytes = totals.bytes_known && totals.bytes > 0;
  OrderedJson results = {
      {"documents", totals.documents},
      {"tokens", likelihood.tokens()},
      {"bytes", with_bytes ? OrderedJson(totals.bytes) : OrderedJson()},
      {"nll", finite(mean)},
      {"ppl", finite(std::exp(mean))},
      {"bits_per_byte",
       with_bytes ? finite(likelihood.total() / std::log(2.0) / static_cast<double>(totals.bytes))
                  : OrderedJson()},
      {"tokens_per_s", finite(static_cast<double>(likelihood.tokens()) / seconds)}};
  if (!a.per_token.empty())
    write_npy(a.per_token, Tensor(nll.data(), DType::f32, {static_cast<int64_t>(nll.size())}));
  print_results(results, common);
  return kDone;
}

// Images, or texts and series as a whole.
int run_examples(const Args& a, const Common& common) {
  const LoadedAny m = a.model.load_any(common, a.average);
  const std::unique_ptr<Examples> examples = open_examples(*m.model, a.model, a.data, true);
  Progress progress("examples", examples->size(), common.quiet);
  const auto start = Clock::now();
  Arena arena(0);
  const Judgement j = *judge(*m.model, *examples, m.dtype, kExamples, arena, [&](int64_t n) {
    check_interrupt();
    progress.add(n);
    return true;
  });
  const double seconds = seconds_since(start);
  OrderedJson results = {{"examples", j.examples}, {"loss", finite(j.loss)}};
  if (j.numbers) {
    results["mse"] = finite(j.mse);
    results["mae"] = finite(j.mae);
    results["r2"] = finite(j.r2);
  } else {
    results["accuracy"] = j.accuracy;
    results["top5_accuracy"] = j.top5_accuracy;
  }
  results["examples_per_s"] = finite(static_cast<double>(j.examples) / seconds);
  print_results(results, common);
  return kDone;
}

// The last word of each passage, with the space before it, given what comes before.
int run_lambada(const Args& a, const Common& common) {
  const LoadedModel loaded = a.model.load(common, a.average);
  const int64_t vocab = loaded.model->config().vocab_size;
  const auto tokenizer = need_tokenizer(a.model.tokenizer, a.model.model, vocab);
  LastWord task(*loaded.model, loaded.dtype);
  Progress progress("bytes", bytes_of(a.data), common.quiet);
  const auto start = Clock::now();
  for (const std::string& source : a.data)
    read_documents(source, [&](std::string_view text, const std::string& where) {
      check_interrupt();
      text = text.substr(0, text.find_last_not_of(" \t\r\n") + 1);
      const size_t space = text.find_last_of(' ');
      require(space != std::string_view::npos && space > 0,
              "{}: expected a passage of several words", where);
      const std::vector<int32_t> before = tokenizer->encode(text.substr(0, space), false);
      std::vector<int32_t> word = tokenizer->encode(text, false);
      // Where the whole text is cut otherwise than its two parts, the parts count.
      if (word.size() > before.size() && std::equal(before.begin(), before.end(), word.begin())) {
        word.erase(word.begin(), word.begin() + static_cast<ptrdiff_t>(before.size()));
      } else {
        word = tokenizer->encode(text.substr(space), false);
      }
      loaded.model->check_tokens(before.data(), static_cast<int64_t>(before.size()));
      task.add(before, word);
      progress.add(static_cast<int64_t>(text.size()));
    });
  task.finish();
  require(task.passages() > 0, "--data: no passage in it");
  const double seconds = seconds_since(start);
  const auto n = static_cast<double>(task.passages());
  print_results({{"task", "lambada"},
                 {"documents", task.passages()},
                 {"tokens", task.tokens()},
                 {"accuracy", static_cast<double>(task.right()) / n},
                 {"nll", finite(task.total() / n)},
                 {"ppl", finite(std::exp(task.total() / n))},
                 {"tokens_per_s", finite(static_cast<double>(task.tokens()) / seconds)}},
                common);
  return kDone;
}

}  // namespace

Work add_eval(CLI::App& app) {
  const auto a = std::make_shared<Args>();
  a->model.add(app);
  app.add_option(
         "--data", a->data,
         "files of text or token ids (.npy, each row a document), folders, - for stdin; of "
         "images a folder with a folder for each class, or .jsonl; of sequences to be judged "
         ".jsonl")
      ->required();
  app.add_option("--per-token", a->per_token,
                 "write the nll of each predicted token, in order: .npy float32");
  app.add_option("--task", a->task, "lambada: last-word accuracy and perplexity of a .jsonl")
      ->check(CLI::IsMember({"lambada"}));
  add_ema(app, a->average);
  return [a](const Common& common) {
    if (!a->task.empty() && !a->per_token.empty())
      throw Usage("--per-token does not go with --task");
    if (judges_examples(a->model.config())) {
      if (!a->task.empty() || !a->per_token.empty())
        throw Usage("--task and --per-token are for language models");
      return run_examples(*a, common);
    }
    check_place(a->per_token);
    return a->task.empty() ? run_likelihood(*a, common) : run_lambada(*a, common);
  };
}

}  // namespace krait::cli
