#include "krait/train/run_data.h"

#include "krait/base/file.h"
#include "krait/base/log.h"
#include "krait/data/images.h"
#include "krait/data/labels.h"
#include "krait/data/sequences.h"

namespace krait {

namespace fs = std::filesystem;

namespace {

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

}  // namespace

RunData::RunData(const RunOptions& o, const fs::path& start, AnyConfig& config)
    : sources_(o.data), valid_sources_(o.valid) {
  if (auto* vision = std::get_if<models::VisionConfig>(&config)) {
    require(o.task.empty(), "task: the model judges images, not sequences");
    list_images(o, start.empty(), *vision);
    return;
  }
  auto& language = std::get<models::Config>(config);
  vocab_size_ = language.vocab_size;
  tokenizer_ = find_tokenizer(o.tokenizer, start, vocab_size_);
  require(o.train.drop_path == 0, "drop-path: only models of images drop layers");
  require(o.train.crop_scale == 1 && o.train.hflip == 0,
          "crop-scale, hflip: only models of images have what can be cut out or flipped");
  if (!o.task.empty() || language.task.kind != models::Task::language)
    read_sequences(o, start.empty(), language);
  require(o.train.label_smoothing == 0 || language.task.kind == models::Task::classification,
          "label-smoothing: the model has no classes");
}

void RunData::read_sequences(const RunOptions& o, bool fresh, models::Config& config) {
  models::Task& task = config.task;
  const bool new_head = task.kind == models::Task::language;
  models::Task asked;
  asked.kind = o.task == "regression" ? models::Task::regression : models::Task::classification;
  asked.pooling = o.pooling == "mean"    ? models::Task::mean
                  : o.pooling == "token" ? models::Task::token
                                         : models::Task::last;
  if (new_head) task = asked;
  require(o.task.empty() ||
              (task.kind == asked.kind && (o.pooling.empty() || task.pooling == asked.pooling)),
          "task: the model judges sequences already, and in another way than {} {}", o.task,
          o.pooling);
  require(!o.train.carry_state,
          "carry-state: sequences that are judged as a whole start from zero");
  SequenceFormat format;
  format.vocab_size = vocab_size_;
  format.numbers = task.kind == models::Task::regression;
  format.place = task.pooling == models::Task::token;
  format.inputs = config.inputs;
  format.longest = o.train.seq_len;
  const Encode encode = encoder(tokenizer_);
  auto train = std::make_unique<SequenceExamples>(o.data, format, encode, task.labels);
  if (new_head) {
    task.outputs = train->outputs();
    if (fresh) config.inputs = train->inputs();
  }
  if (fresh || new_head) task.labels = names_of_all(train->names(), task.outputs);
  train->require_kind(config.inputs, task.outputs);
  if (train->cut() > 0)
    spdlog::warn("{} of {} sequences are longer than seq-len {}: only their start is read",
                 train->cut(), train->size(), format.longest);
  if (!o.valid.empty()) {
    auto valid = std::make_unique<SequenceExamples>(o.valid, format, encode, train->names());
    valid->require_kind(config.inputs, task.outputs);
    valid_examples_ = std::move(valid);
  }
  examples_ = std::move(train);
}

void RunData::list_images(const RunOptions& o, bool fresh, models::VisionConfig& config) {
  require(!o.train.carry_state, "carry-state: images are judged by themselves");
  require(o.train.dropout == 0, "dropout: models of images have none; they have drop-path");
  const ImageShape shape{config.channels, config.image};
  auto train = std::make_unique<ImageExamples>(o.data, shape, config.labels,
                                               Augmentation{o.train.crop_scale, o.train.hflip});
  if (fresh && config.classes_open) config.classes = train->classes();
  if (fresh) config.labels = names_of_all(train->names(), config.classes);
  train->require_classes(config.classes);
  if (!o.valid.empty()) {
    auto valid = std::make_unique<ImageExamples>(o.valid, shape, train->names());
    valid->require_classes(config.classes);
    valid_examples_ = std::move(valid);
  }
  examples_ = std::move(train);
}

void RunData::read() {
  if (examples_) return;
  const Encode encode = encoder(tokenizer_);
  tokens_ = std::make_unique<TokenStream>(read_tokens(sources_, encode, vocab_size_));
  if (valid_sources_.empty()) return;
  valid_tokens_ = std::make_unique<TokenStream>(read_tokens(valid_sources_, encode, vocab_size_));
  require(valid_tokens_->targets() > 0, "{}: the validation data has nothing to predict",
          fmt::join(valid_sources_, ", "));
}

std::unique_ptr<Batches> RunData::batches(const TrainOptions& o) const {
  if (examples_) return std::make_unique<ExampleBatcher>(*examples_, o.batch_size, o.order, o.seed);
  return std::make_unique<Batcher>(
      *tokens_, BatcherOptions{o.batch_size, o.seq_len, o.order, o.carry_state, o.seed});
}

void RunData::validate(Trainer& trainer, const std::function<bool()>& stop,
                       LogRecord& record) const {
  if (valid_tokens_) {
    record.valid_loss = trainer.validate(*valid_tokens_, stop);
  } else if (const std::optional<Judgement> j = trainer.validate(*valid_examples_, stop)) {
    record.valid_loss = j->loss;
    if (!j->numbers) record.valid_accuracy = j->accuracy;
  }
}

}  // namespace krait
