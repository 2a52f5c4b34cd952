#include "krait/train/run.h"

#include <cmath>
#include <filesystem>
#include <future>
#include <limits>
#include <memory>
#include <optional>

#include "krait/base/clock.h"
#include "krait/base/file.h"
#include "krait/base/folder_lock.h"
#include "krait/train/checkpoint.h"
#include "krait/train/run_data.h"
#include "krait/train/sample.h"
#include "krait/train/trainer.h"

namespace krait {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kSampleTokens = 200;

class Run {
 public:
  Run(RunOptions options, bool resume, const RunWatcher& watcher)
      : o_(std::move(options)), resume_(resume), watcher_(watcher), out_(o_.out) {}

  RunResult go() {
    prepare();
    if (unfinished_) finish(*unfinished_);
    while (trainer_->steps_done() < o_.train.steps && !result_.interrupted) one_step();
    result_.steps = trainer_->steps_done();
    result_.best_loss = progress_.best_loss;
    return result_;
  }

 private:
  void prepare() {
    check(o_);
    start_ = resume_ ? last_checkpoint(out_) : fs::path(o_.from);
    require(resume_ || !fs::exists(out_ / "last"),
            "{}: there is a run already: go on with --resume {}, or name another directory",
            out_.string(), out_.string());
    check_log();
    require(start_.empty() || fs::exists(start_),
            "{}: expected a model directory (config.json with its weights)", start_.string());
    AnyConfig config = read_any_config(start_.empty() ? o_.model : start_.string());
    data_ = std::make_unique<RunData>(with_tokenizer(), start_, config);
    const TrainingMemory memory = plan_training(*make_model(config), o_.train);
    require_memory(memory, o_.train);

    std::future<void> reading = std::async(std::launch::async, [this] { data_->read(); });
    start_model(config);
    reading.get();
    std::unique_ptr<Batches> batches = data_->batches(o_.train);
    const std::string description = batches->description();
    if (o_.epochs > 0) o_.train.steps = steps_of_epochs(batches->rows());
    trainer_->read(std::move(batches), o_.train.steps);
    progress_.best_loss = std::numeric_limits<double>::infinity();
    if (resume_) {
      trainer_->load(start_);
      progress_ = read_progress(start_);
    }
    std::error_code ec;
    fs::create_directories(out_, ec);
    require(!ec, "cannot create {}: {}", out_.string(), ec.message());
    lock_.emplace(out_);
    remove_unfinished(out_);
    write_file(out_ / "config.toml", to_toml(o_));
    if (resume_) mend_best();
    unfinished_ = step_to_finish();
    const int64_t logged = trainer_->steps_done() - (unfinished_ ? 1 : 0);
    logs_.emplace_back(out_ / "log.jsonl", logged);
    if (!o_.log.empty() && !fs::equivalent(o_.log, out_ / "log.jsonl", ec))
      logs_.emplace_back(o_.log, logged);
    if (watcher_.begin)
      watcher_.begin(model_->params().numel(), memory, description, data_->unit());
  }

  // A run goes on with the tokenizer of its checkpoint where the file named at its start is gone.
  RunOptions with_tokenizer() const {
    RunOptions o = o_;
    const fs::path kept = start_ / "tokenizer.json";
    if (resume_ && !fs::exists(o.tokenizer) && fs::exists(kept)) o.tokenizer = kept.string();
    return o;
  }

  // A run that was killed behind the writing of last/, before best/ took its place.
  void mend_best() const {
    const fs::path best = out_ / "best";
    if (fs::exists(best / "trainer.json") && read_progress(best).best_loss != progress_.best_loss)
      share_checkpoint(start_, best);
  }

  // The record of the last step, where the run was stopped before that step was validated.
  std::optional<LogRecord> step_to_finish() const {
    const int64_t done = trainer_->steps_done();
    if (!validates(done) || !fs::exists(out_ / "log.jsonl")) return {};
    for (const LogRecord& r : read_log(out_ / "log.jsonl"))
      if (r.step == done && !r.valid_loss) return r;
    return {};
  }

  // The copy of the log may lie in the directory of the run, which is made later.
  void check_log() const {
    if (o_.log.empty()) return;
    const auto folder = [](const fs::path& file) {
      return fs::absolute(file).lexically_normal().parent_path();
    };
    require(fs::is_directory(folder(o_.log)) || folder(o_.log) == folder(out_ / "log.jsonl"),
            "log: expected a file in a directory that exists, got {}", o_.log);
    require(!fs::is_directory(o_.log), "log: expected a file, {} is a directory", o_.log);
  }

  // The weights and the trainer, which records the first step while fresh weights are drawn.
  void start_model(const AnyConfig& config) {
    if (!start_.empty()) {
      LoadOptions options{purpose_of(o_.train), o_.train.dtype, o_.train.device};
      if (const auto* language = std::get_if<models::Config>(&config))
        options.task = language->task;
      model_ = load_any_model(start_, options).model;
    } else {
      model_ = make_model(config);
      model_->params().allocate(purpose_of(o_.train), o_.train.dtype, false, o_.train.device);
    }
    trainer_ = std::make_unique<Trainer>(*model_, o_.train);
    std::future<void> preparing = std::async(std::launch::async, [this] { trainer_->prepare(); });
    if (start_.empty()) model_->params().initialize(o_.train.seed);
    preparing.get();
  }

  int64_t steps_of_epochs(int64_t rows) const {
    const TrainOptions& t = o_.train;
    return static_cast<int64_t>(std::ceil(o_.epochs * static_cast<double>(rows) /
                                          static_cast<double>(t.batch_size * t.grad_accum)));
  }

  void one_step() {
    const Clock::time_point start = Clock::now();
    const StepResult r = trainer_->step();
    const double took = seconds_since(start);
    const int64_t step = trainer_->steps_done();
    LogRecord record{
        step, r.loss, r.grad_norm, r.lr, r.tokens * step, static_cast<double>(r.tokens) / took,
        0,    {}};
    if (model_->routes()) record.dropped = r.dropped;
    if (std::isfinite(r.loss)) progress_.loss_sum += r.loss, ++progress_.loss_steps;
    progress_.step = step;
    progress_.seconds += took;
    finish(record);
  }

  // What is due after a step was taken: validation, its line in the log, a sample, a checkpoint.
  void finish(LogRecord record) {
    const Clock::time_point start = Clock::now();
    const int64_t step = record.step;
    result_.interrupted = stopping();
    if (validates(step) && !result_.interrupted) data_->validate(*trainer_, watcher_.stop, record);
    result_.interrupted = stopping();
    progress_.seconds += seconds_since(start);
    record.seconds = progress_.seconds;
    for (RunLog& log : logs_) log.append(record);
    result_.last = record;
    if (watcher_.step) watcher_.step(record, o_.train.steps);
    if (due(step, o_.sample_every) && !result_.interrupted) sample(step);

    const bool save_now = step == o_.train.steps || due(step, o_.save_every);
    std::optional<double> candidate = record.valid_loss;
    if (save_now) {
      if (!data_->has_validation() && progress_.loss_steps > 0)
        candidate = progress_.loss_sum / static_cast<double>(progress_.loss_steps);
      progress_.loss_sum = 0;
      progress_.loss_steps = 0;
    }
    const bool best = candidate && *candidate < progress_.best_loss;
    if (best) progress_.best_loss = *candidate;
    if (save_now || best || result_.interrupted) save(step, best);
  }

  void save(int64_t step, bool best) {
    write_checkpoint(out_ / "last", *model_, *trainer_, progress_, data_->tokenizer().json);
    if (best || !fs::exists(out_ / "best")) share_checkpoint(out_ / "last", out_ / "best");
    if (o_.keep > 0) {
      share_checkpoint(out_ / "last", out_ / fmt::format("step-{:08}", step));
      prune_checkpoints(out_, o_.keep);
    }
  }

  void sample(int64_t step) {
    const Tokenizer* const tokenizer = data_->tokenizer().tokenizer.get();
    const auto* const model = dynamic_cast<const models::LanguageModel*>(model_.get());
    if (!watcher_.sample || !tokenizer || !model) return;
    watcher_.sample(step, o_.sample_prompt,
                    sample_text(*model, *tokenizer, o_.sample_prompt, kSampleTokens, o_.train.dtype,
                                o_.train.seed));
  }

  bool validates(int64_t step) const {
    return data_->has_validation() && step > 0 &&
           (step == o_.train.steps || due(step, o_.eval_every));
  }
  static bool due(int64_t step, int64_t every) { return every > 0 && step % every == 0; }
  bool stopping() const { return watcher_.stop && watcher_.stop(); }

  RunOptions o_;
  bool resume_;
  const RunWatcher& watcher_;
  fs::path out_;
  std::optional<FolderLock> lock_;  // of out_
  fs::path start_;                  // directory that the weights come from; empty: fresh ones
  std::unique_ptr<RunData> data_;
  std::unique_ptr<models::Model> model_;
  std::unique_ptr<Trainer> trainer_;
  std::vector<RunLog> logs_;
  std::optional<LogRecord> unfinished_;
  Progress progress_;
  RunResult result_;
};

}  // namespace

RunResult run_training(RunOptions o, bool resume, const RunWatcher& watcher) {
  return Run(std::move(o), resume, watcher).go();
}

}  // namespace krait
