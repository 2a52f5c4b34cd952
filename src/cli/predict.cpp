// krait predict: what a model says of images, texts and series whose answers nobody knows.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>

#include "krait/cli/commands.h"
#include "krait/cli/examples.h"
#include "krait/cli/progress.h"
#include "krait/data/judge.h"
#include "krait/io/any_model.h"

namespace krait::cli {

namespace {

struct Args {
  ModelArgs model;
  std::vector<std::string> data;
  bool average = false;
};

// What the outputs say of one example.
class Answers {
 public:
  explicit Answers(const models::Model& model) {
    if (const auto* vision = dynamic_cast<const models::VisionMamba*>(&model)) {
      names_ = vision->config().labels;
      return;
    }
    const models::Task& task = dynamic_cast<const models::LanguageModel&>(model).config().task;
    names_ = task.labels;
    numbers_ = task.kind == models::Task::regression;
  }

  void print(const std::string& of, std::span<const float> outputs, bool json) const {
    numbers_ ? print_numbers(of, outputs, json) : print_class(of, outputs, json);
  }

 private:
  static void print_numbers(const std::string& of, std::span<const float> outputs, bool json) {
    if (!json) return print_line("{}\t{}", of, fmt::join(outputs, "\t"));
    const OrderedJson target =
        outputs.size() == 1 ? OrderedJson(outputs[0])
                            : OrderedJson(std::vector<float>(outputs.begin(), outputs.end()));
    print_json({{"example", of}, {"target", target}});
  }

  void print_class(const std::string& of, std::span<const float> outputs, bool json) const {
    const auto best =
        static_cast<size_t>(std::max_element(outputs.begin(), outputs.end()) - outputs.begin());
    std::vector<double> p;
    double sum = 0;
    for (const float x : outputs)
      sum += p.emplace_back(std::exp(static_cast<double>(x) - outputs[best]));
    for (double& x : p) x /= sum;
    const bool named = best < names_.size();
    if (!json)
      return print_line("{}\t{}\t{:.4f}", of, named ? names_[best] : std::to_string(best), p[best]);
    print_json({{"example", of},
                {"label", named ? OrderedJson(names_[best]) : OrderedJson(best)},
                {"probability", p[best]},
                {"probabilities", p}});
  }

  std::vector<std::string> names_;  // of classes; without, they are numbers
  bool numbers_ = false;
};

int run_predict(const Args& a, const Common& common) {
  if (!judges_examples(a.model.config()))
    fail(
        "{}: this is a language model: krait generate goes on with a text, krait eval says how "
        "likely it is",
        a.model.model);
  const LoadedAny m = a.model.load_any(common, a.average);
  const std::unique_ptr<Examples> examples = open_examples(*m.model, a.model, a.data, false);
  const Answers answers(*m.model);
  Progress progress("examples", examples->size(), common.quiet);
  Arena arena(0);
  int64_t i = 0;
  predict(*m.model, *examples, m.dtype, kExamples, arena, [&](std::span<const float> outputs) {
    check_interrupt();
    answers.print(examples->name(i++), outputs, common.json);
    progress.add(1);
  });
  return kDone;
}

}  // namespace

Work add_predict(CLI::App& app) {
  const auto a = std::make_shared<Args>();
  a->model.add(app);
  app.add_option("--data", a->data,
                 "images, folders of them, or .jsonl files with an \"image\" a line; of sequences "
                 ".jsonl files with a \"text\", \"tokens\" or \"values\" a line")
      ->required();
  add_ema(app, a->average);
  return [a](const Common& common) { return run_predict(*a, common); };
}

}  // namespace krait::cli
