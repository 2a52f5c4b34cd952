// krait train: fresh from a preset or config, from a model's weights, or on with a run.
#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <tuple>

#include "krait/base/log.h"
#include "krait/cli/commands.h"
#include "krait/cli/model_args.h"
#include "krait/cli/numbers.h"
#include "krait/io/tokenizer/unicode.h"
#include "krait/train/run.h"
#include "krait/train/status.h"

namespace krait::cli {

namespace {

struct TrainArguments {
  RunOptions run;
  std::string resume, order, schedule = "constant", optimizer = "adamw";
  std::string betas = "0.9,0.95";
  CLI::App* app = nullptr;
};

void add_start_options(CLI::App& app, TrainArguments& a) {
  RunOptions& r = a.run;
  const auto start = "What is trained, on what";
  app.add_option("--model", r.model, "a fresh model: a preset's name, or a config.json")
      ->group(start);
  app.add_option("--from", r.from, "start from the weights of a model directory")->group(start);
  app.add_option("--task", r.task,
                 "judge whole sequences: a head for as many classes or numbers as the data has")
      ->check(CLI::IsMember({"classification", "regression"}))
      ->group(start);
  app.add_option(
         "--pooling", r.pooling,
         "what of a sequence the head reads: the last vector (default), their mean, or that of "
         "a learned token")
      ->check(CLI::IsMember({"last", "mean", "token"}))
      ->group(start);
  app.add_option("--resume", a.resume, "go on with the run in this directory")->group(start);
  app.add_option("--data", r.data,
                 "training data: .npy, text, .jsonl, folders, - for stdin; of images a folder with "
                 "a folder for each class, or .jsonl; of sequences to be judged .jsonl")
      ->group(start);
  app.add_option("--valid", r.valid, "validation data, read like the training data")->group(start);
  app.add_option("--out", r.out, "directory of the run")->group(start);
  app.add_option("--tokenizer", r.tokenizer, "a tokenizer.json, or \"bytes\"")->group(start);
}

const CLI::Range kPositive(int64_t{1}, int64_t{1} << 40);

void add_batch_options(CLI::App& app, TrainArguments& a) {
  TrainOptions& t = a.run.train;
  const auto batches = "Batches";
  app.add_option("--batch-size", t.batch_size, "sequences at once")
      ->check(kPositive)
      ->capture_default_str()
      ->group(batches);
  app.add_option("--seq-len", t.seq_len, "tokens of a sequence")
      ->check(kPositive)
      ->capture_default_str()
      ->group(batches);
  app.add_option("--grad-accum", t.grad_accum, "batches whose gradients make one step")
      ->check(kPositive)
      ->capture_default_str()
      ->group(batches);
  app.add_option("--order", a.order, "shuffle (windows in random order, default) or sequential")
      ->check(CLI::IsMember({"shuffle", "sequential"}))
      ->group(batches);
  app.add_flag("--carry-state", t.carry_state,
               "the state of each row goes on into the next batch (sequential order)")
      ->group(batches);
}

void add_optimisation_options(CLI::App& app, TrainArguments& a) {
  TrainOptions& t = a.run.train;
  const CLI::Validator from_zero = number_from_zero(), above_zero = number_above_zero(),
                       below_one = number_in(0, 0.999);
  const auto optimisation = "Optimisation";
  CLI::Option* const steps = app.add_option("--steps", t.steps, "steps in all")
                                 ->check(kPositive)
                                 ->capture_default_str()
                                 ->group(optimisation);
  app.add_option("--epochs", a.run.epochs, "passes over the data, in place of --steps")
      ->check(above_zero)
      ->excludes(steps)
      ->group(optimisation);
  app.add_option("--optimizer", a.optimizer, "adamw")
      ->check(CLI::IsMember({"adamw"}))
      ->capture_default_str()
      ->group(optimisation);
  app.add_option("--lr", t.lr, "learning rate")
      ->check(from_zero)
      ->capture_default_str()
      ->group(optimisation);
  app.add_option("--schedule", a.schedule, "of the learning rate")
      ->check(CLI::IsMember({"constant", "linear", "cosine", "wsd"}))
      ->capture_default_str()
      ->group(optimisation);
  app.add_option("--warmup", t.warmup, "steps over which the rate rises from 0")
      ->check(from_zero)
      ->capture_default_str()
      ->group(optimisation);
  app.add_option("--min-lr", t.min_lr, "learning rate at the end of the schedule")
      ->check(from_zero)
      ->capture_default_str()
      ->group(optimisation);
  app.add_option("--betas", a.betas, "decay of the two moments")
      ->capture_default_str()
      ->group(optimisation);
  app.add_option("--eps", t.eps, "AdamW's epsilon")
      ->check(above_zero)
      ->capture_default_str()
      ->group(optimisation);
  app.add_option("--weight-decay", t.weight_decay, "decoupled, on matrices but A_log")
      ->check(from_zero)
      ->capture_default_str()
      ->group(optimisation);
  app.add_option("--clip", t.clip, "largest norm of the gradient; 0: no limit")
      ->check(number("NONNEGATIVE", "a number from 0 on", [](double x) { return x >= 0; }))
      ->capture_default_str()
      ->group(optimisation);
  app.add_option("--dropout", t.dropout, "of what each layer adds")
      ->check(below_one)
      ->capture_default_str()
      ->group(optimisation);
  app.add_option("--drop-path", t.drop_path,
                 "of whole layers of images: the last layer's share, the first loses nothing")
      ->check(below_one)
      ->capture_default_str()
      ->group(optimisation);
  app.add_option("--label-smoothing", t.label_smoothing, "share of a class that all classes get")
      ->check(below_one)
      ->capture_default_str()
      ->group(optimisation);
  app.add_option("--crop-scale", t.crop_scale,
                 "of random crops of images: their least share of the area (1: no random crops)")
      ->check(share_above_zero())
      ->capture_default_str()
      ->group(optimisation);
  app.add_option("--hflip", t.hflip, "share of the images that are flipped, left to right")
      ->check(number_in(0, 1))
      ->capture_default_str()
      ->group(optimisation);
  add_recompute(app, t.recompute)->group(optimisation);
}

void add_output_options(CLI::App& app, RunOptions& r) {
  const CLI::Validator from_zero = number_from_zero();
  const auto output = "While it runs (every N steps; 0: at the end only)";
  app.add_option("--eval-every", r.eval_every, "measure the validation loss")
      ->check(from_zero)
      ->capture_default_str()
      ->group(output);
  app.add_option("--save-every", r.save_every, "save last/")
      ->check(from_zero)
      ->capture_default_str()
      ->group(output);
  app.add_option("--keep", r.keep, "older checkpoints kept as step-N/")
      ->check(from_zero)
      ->capture_default_str()
      ->group(output);
  app.add_option("--sample-every", r.sample_every, "continue a prompt (0: never)")
      ->check(from_zero)
      ->capture_default_str()
      ->group(output);
  app.add_option("--sample-prompt", r.sample_prompt, "the prompt")->group(output);
  app.add_option("--log", r.log, "a second copy of log.jsonl")->group(output);
}

std::pair<float, float> two_numbers(const std::string& betas) {
  float first = 0, second = 0;
  char end = 0;
  if (std::sscanf(betas.c_str(), "%f,%f%c", &first, &second, &end) != 2)
    throw Usage(fmt::format("--betas: expected two numbers as 0.9,0.95, got {}", betas));
  for (const float beta : {first, second})
    if (!(beta >= 0 && beta < 1))
      throw Usage(fmt::format("--betas: expected numbers from 0 to below 1, got {}", betas));
  return {first, second};
}

// What the parser could not settle.
void settle(TrainArguments& a, const Common& common) {
  RunOptions& r = a.run;
  TrainOptions& t = r.train;
  const auto typed = [&](const char* name) { return a.app->count(name) > 0; };
  if (a.resume.empty()) {
    if (typed("--model") == typed("--from"))
      throw Usage("one of --model, --from and --resume says what is trained");
    if (r.out.empty()) throw Usage("--out RUN is missing");
    if (has_weights(r.model))
      throw Usage(
          fmt::format("--model {0}: this folder holds weights, which --from {0} starts from; for "
                      "new ones of the same sizes --model {0}/config.json",
                      r.model));
  } else {
    std::error_code ec;
    if (!r.out.empty() && !std::filesystem::equivalent(r.out, a.resume, ec))
      throw Usage("--resume RUN goes on in RUN: --out cannot name another directory");
    r.out = a.resume;
  }
  if (r.data.empty()) throw Usage("--data FILE is missing");
  if (t.carry_state && a.order == "shuffle")
    throw Usage(
        "--carry-state reads the data in order: it cannot be combined with --order shuffle");
  t.order = t.carry_state || a.order == "sequential" ? Order::sequential : Order::shuffle;
  static const std::map<std::string, Schedule> schedules = {{"constant", Schedule::constant},
                                                            {"linear", Schedule::linear},
                                                            {"cosine", Schedule::cosine},
                                                            {"wsd", Schedule::wsd}};
  t.schedule = schedules.at(a.schedule);
  std::tie(t.beta1, t.beta2) = two_numbers(a.betas);
  t.dtype = common.chosen_dtype().value_or(DType::f32);
  t.seed = common.seed;
  if (t.min_lr > t.lr) throw Usage("--min-lr is above --lr");
}

// Bytes of a young model must not steer the terminal.
std::string printable(const std::string& text) {
  std::string storage;
  std::string shown(
      unicode::lossy(text, storage));  // bytes of a model that has not learnt UTF-8 yet
  for (size_t i = 0; i < shown.size(); ++i) {
    char& c = shown[i];
    if ((static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') || c == 0x7f) c = '?';
    // U+0080 to U+009F: some terminals take them for the commands that they are
    if (c == '\xc2' && static_cast<unsigned char>(shown[i + 1]) < 0xa0) shown.replace(i, 2, "?");
  }
  return shown;
}

// `validated`: the last record with a validation loss, or one without.
OrderedJson summary(const RunOptions& o, const RunResult& r, const LogRecord& validated) {
  const std::filesystem::path out = o.out;
  OrderedJson j;
  j["run"] = o.out;
  j["checkpoint"] = (out / "last").string();
  j["steps"] = r.steps;
  const auto of_last_step = [&](auto value) {  // null where no step was left to do
    return r.last.step > 0 ? OrderedJson(value) : OrderedJson();
  };
  j["loss"] = of_last_step(r.last.loss);
  j["valid_loss"] = validated.valid_loss.value_or(std::nan(""));
  if (validated.valid_accuracy) j["valid_accuracy"] = *validated.valid_accuracy;
  j["best_loss"] = r.best_loss;
  j["tokens"] = of_last_step(r.last.tokens);
  j["seconds"] = of_last_step(r.last.seconds);
  j["tokens_per_s"] = of_last_step(r.last.tokens_per_s);
  j["interrupted"] = r.interrupted;
  return j;
}

int work(TrainArguments& a, const Common& common) {
  settle(a, common);
  a.run.train.device = common.resolved_device();
  StatusLine status(common.quiet);
  RunWatcher watcher;
  watcher.stop = [] { return interrupted().load(); };
  watcher.begin = [&](int64_t parameters, const TrainingMemory& m, const std::string& data,
                      const std::string& unit) {
    status.count(unit);
    spdlog::info(
        "{} parameters; memory: {:.2f} GB for weights, gradients and moments, {:.2f} GB for "
        "a step; data: {}",
        parameters, static_cast<double>(m.parameters) * 1e-9,
        static_cast<double>(m.step + m.states) * 1e-9, data);
  };
  watcher.step = [&](const LogRecord& r, int64_t steps) { status.update(r, steps); };
  watcher.sample = [&](int64_t step, const std::string& prompt, const std::string& text) {
    status.clear();
    spdlog::info("sample after step {}: {}{}", step, prompt, printable(text));
  };
  const RunResult result = run_training(a.run, !a.resume.empty(), watcher);
  status.clear();
  const LogRecord& validated = status.validated();
  if (common.json) {
    print_json(summary(a.run, result, validated));
  } else {
    std::string line =
        fmt::format("{} after step {}", result.interrupted ? "stopped" : "done", result.steps);
    if (result.last.step > 0) line += fmt::format(": loss {:.4f}", result.last.loss);
    if (validated.valid_loss)
      line += fmt::format(", validation loss {:.4f}", *validated.valid_loss);
    if (validated.valid_accuracy)
      line += fmt::format(", accuracy {:.4f}", *validated.valid_accuracy);
    print_line("{}; saved in {}", line, (std::filesystem::path(a.run.out) / "last").string());
  }
  return result.interrupted ? kInterrupted : kDone;
}

}  // namespace

Work add_train(CLI::App& app) {
  const auto a = std::make_shared<TrainArguments>();
  a->app = &app;
  add_start_options(app, *a);
  add_batch_options(app, *a);
  add_optimisation_options(app, *a);
  add_output_options(app, a->run);
  return [a](const Common& common) { return work(*a, common); };
}

}  // namespace krait::cli
