#include "krait/train/run.h"

#include <chrono>
#include <cmath>
#include <filesystem>
#include <limits>
#include <memory>

#include "krait/base/file.h"
#include "krait/io/model.h"
#include "krait/io/tokenizer/tokenizer.h"
#include "krait/train/checkpoint.h"
#include "krait/train/sample.h"
#include "krait/train/trainer.h"

namespace krait {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kSampleTokens = 200;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The text of a run's tokenizer.json ("" for bytes) and what it makes; null where there is none.
struct RunTokenizer {
  std::string json;
  std::unique_ptr<Tokenizer> tokenizer;
};

RunTokenizer find_tokenizer(const std::string& named, const fs::path& model_directory,
                            int64_t vocab_size) {
  fs::path file = named;
  if (named.empty() && !model_directory.empty() && fs::exists(model_directory / "tokenizer.json"))
    file = model_directory / "tokenizer.json";
  RunTokenizer t;
  if (named == "bytes" || (file.empty() && vocab_size == 256)) {
    t.tokenizer = byte_tokenizer();
  } else if (!file.empty()) {
    t.json = read_file(file);
    t.tokenizer = parse_tokenizer(t.json, file.string());
  }
  return t;
}

Encode encoder(const RunTokenizer& t) {
  if (!t.tokenizer)
    return [](std::string_view) -> std::vector<int32_t> {
      fail(
          "the model has no tokenizer.json: name one with --tokenizer FILE, or give token ids "
          "(.npy)");
    };
  if (t.json.empty()) return {};  // bytes
  return [&t](std::string_view text) { return t.tokenizer->encode(text, false); };
}

class Run {
 public:
  Run(RunOptions options, bool resume, const RunWatcher& watcher)
      : o_(std::move(options)), resume_(resume), watcher_(watcher), out_(o_.out) {}

  RunResult go() {
    prepare();
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
    const models::Config config = read_start();
    models::LanguageModel sketch(config);
    const TrainingMemory memory = plan_training(sketch, o_.train);
    require_memory(memory, o_.train);

    tokenizer_ = find_tokenizer(o_.tokenizer, start_, config.vocab_size);
    const Encode encode = encoder(tokenizer_);
    data_ = std::make_unique<TokenStream>(read_tokens(o_.data, encode, config.vocab_size));
    if (!o_.valid.empty())
      valid_ = std::make_unique<TokenStream>(read_tokens(o_.valid, encode, config.vocab_size));
    if (o_.epochs > 0) o_.train.steps = steps_of_epochs();

    make_model(config);
    trainer_ = std::make_unique<Trainer>(*model_, *data_, o_.train);
    progress_.best_loss = std::numeric_limits<double>::infinity();
    if (resume_) {
      trainer_->load(start_);
      progress_ = read_progress(start_);
    }
    std::error_code ec;
    fs::create_directories(out_, ec);
    require(!ec, "cannot create {}: {}", out_.string(), ec.message());
    remove_unfinished(out_);
    write_file(out_ / "config.toml", to_toml(o_));
    logs_.emplace_back(out_ / "log.jsonl", trainer_->steps_done());
    if (!o_.log.empty()) logs_.emplace_back(o_.log, trainer_->steps_done());
    if (watcher_.begin) watcher_.begin(model_->params().numel(), memory, *data_);
  }

  models::Config read_start() const {
    Layout layout;
    if (!start_.empty()) return read_config(start_, layout);
    const fs::path file = o_.model;
    if (file.extension() == ".json" || fs::is_regular_file(file))
      return parse_config(read_file(file), file.string(), layout);
    return models::preset(o_.model);
  }

  void make_model(const models::Config& config) {
    if (!start_.empty()) {
      model_ = load_model(start_, {nn::Purpose::training, o_.train.dtype, o_.train.device}).model;
      return;
    }
    model_ = std::make_unique<models::LanguageModel>(config);
    model_->params().allocate(nn::Purpose::training, o_.train.dtype, false, o_.train.device);
    model_->params().initialize(o_.train.seed);
  }

  int64_t steps_of_epochs() const {
    const TrainOptions& t = o_.train;
    const Batcher batcher(*data_, {t.batch_size, t.seq_len, t.order, t.carry_state, t.seed});
    const double rows = o_.epochs * static_cast<double>(batcher.windows());
    return static_cast<int64_t>(std::ceil(rows / static_cast<double>(t.batch_size * t.grad_accum)));
  }

  void one_step() {
    const Clock::time_point start = Clock::now();
    const StepResult r = trainer_->step();
    const double took = seconds_since(start);
    const int64_t step = trainer_->steps_done();
    const bool last = step == o_.train.steps;
    result_.interrupted = stopping();

    LogRecord record{
        step, r.loss, r.grad_norm, r.lr, r.tokens * step, static_cast<double>(r.tokens) / took,
        0,    {}};
    if (model_->routes()) record.dropped = r.dropped;
    if (valid_ && !result_.interrupted && (last || due(step, o_.eval_every)))
      record.valid_loss = trainer_->validate(*valid_, watcher_.stop);
    result_.interrupted = stopping();
    progress_.step = step;
    progress_.seconds += seconds_since(start);
    record.seconds = progress_.seconds;
    for (RunLog& log : logs_) log.append(record);
    result_.last = record;
    if (watcher_.step) watcher_.step(record, o_.train.steps);
    if (due(step, o_.sample_every) && !result_.interrupted) sample(step);

    if (std::isfinite(r.loss)) loss_since_save_ += r.loss, ++steps_since_save_;
    const bool save_now = last || result_.interrupted || due(step, o_.save_every);
    std::optional<double> candidate = record.valid_loss;
    if (!valid_ && save_now && steps_since_save_ > 0)
      candidate = loss_since_save_ / static_cast<double>(steps_since_save_);
    const bool best = candidate && *candidate < progress_.best_loss;
    if (best) progress_.best_loss = *candidate;
    if (save_now || best) save(step, best);
  }

  void save(int64_t step, bool best) {
    write_checkpoint(out_ / "last", *model_, *trainer_, progress_, tokenizer_.json);
    if (best || !fs::exists(out_ / "best")) share_checkpoint(out_ / "last", out_ / "best");
    if (o_.keep > 0) {
      share_checkpoint(out_ / "last", out_ / fmt::format("step-{:08}", step));
      prune_checkpoints(out_, o_.keep);
    }
    loss_since_save_ = 0;
    steps_since_save_ = 0;
  }

  void sample(int64_t step) {
    if (!watcher_.sample || !tokenizer_.tokenizer) return;
    watcher_.sample(step, o_.sample_prompt,
                    sample_text(*model_, *tokenizer_.tokenizer, o_.sample_prompt, kSampleTokens,
                                o_.train.dtype, o_.train.seed));
  }

  static bool due(int64_t step, int64_t every) { return every > 0 && step % every == 0; }
  bool stopping() const { return watcher_.stop && watcher_.stop(); }

  RunOptions o_;
  bool resume_;
  const RunWatcher& watcher_;
  fs::path out_;
  fs::path start_;  // directory that the weights come from; empty: fresh ones
  RunTokenizer tokenizer_;
  std::unique_ptr<TokenStream> data_, valid_;
  std::unique_ptr<models::LanguageModel> model_;
  std::unique_ptr<Trainer> trainer_;
  std::vector<RunLog> logs_;
  Progress progress_;
  double loss_since_save_ = 0;
  int64_t steps_since_save_ = 0;
  RunResult result_;
};

}  // namespace

RunResult run_training(RunOptions o, bool resume, const RunWatcher& watcher) {
  return Run(std::move(o), resume, watcher).go();
}

}  // namespace krait
