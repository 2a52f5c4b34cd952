#include "krait/data/sequences.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>

#include "krait/base/file.h"
#include "krait/base/file_name.h"
#include "krait/base/hash.h"
#include "krait/data/labels.h"
#include "krait/io/npy.h"
#include "krait/io/sound_file.h"

namespace krait {

namespace fs = std::filesystem;

namespace {

float finite_number(const Json& x, const JsonView& line, const char* key) {
  if (!x.is_number() || !std::isfinite(x.get<float>())) line.wrong(key, "numbers");
  return x.get<float>();
}

std::vector<int32_t> ids_of(const JsonView& line, const SequenceFormat& format,
                            const Encode& encode) {
  std::vector<int32_t> ids;
  if (line.has("tokens")) {
    const Json& list = line.at("tokens");
    if (!list.is_array()) line.wrong("tokens", "a list of ids");
    for (const Json& id : list) {
      if (!id.is_number_integer() || id.get<int64_t>() < 0 ||
          id.get<int64_t>() >= format.vocab_size)
        line.wrong("tokens", fmt::format("ids from 0 to {}", format.vocab_size - 1));
      ids.push_back(id.get<int32_t>());
    }
    return ids;
  }
  const std::string text = line.text("text");
  if (encode) return encode(text);
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

// (L, F)
void read_array(const fs::path& file, Example& e) {
  const TensorFile array = read_npy(file);
  const Tensor t = array.tensors().front().view;
  require(t.dtype == DType::f32 && t.rank() == 2,
          "{}: expected a series as float32 (L, F), got {} {}", file.string(), name_of(t.dtype),
          t.shape);
  e.values.assign(t.as<float>(), t.as<float>() + t.numel());
  e.shape = t.shape;
  require_finite(e, file.string());
}

// (L, F), silence behind the last sample.
void cut_sound(const fs::path& file, int64_t F, Example& e) {
  const Sound sound = read_sound(file);
  const auto C = static_cast<size_t>(sound.channels);
  for (size_t i = 0; i < sound.samples.size(); i += C)
    e.values.push_back(std::accumulate(&sound.samples[i], &sound.samples[i] + C, 0.0f) /
                       static_cast<float>(C));
  const int64_t L = (static_cast<int64_t>(e.values.size()) + F - 1) / F;
  e.values.resize(static_cast<size_t>(L * F), 0.0f);
  e.shape = {L, F};
  require_finite(e, file.string());
}

void read_series(const JsonView& line, const fs::path& folder, const SequenceFormat& format,
                 Example& e) {
  const Json& values = line.at("values");
  if (values.is_string()) {
    const fs::path file = folder / values.get<std::string>();
    if (is_sound(file)) return cut_sound(file, std::max<int64_t>(1, format.inputs), e);
    if (ending_of(file) != ".npy") line.wrong("values", "the name of a .npy, .wav, .flac or .ogg");
    return read_array(file, e);
  }
  if (!values.is_array())
    line.wrong("values", "a list of vectors, or the name of a .npy or a sound");
  size_t F = 1;
  for (const Json& v : values) {
    const Json vector = v.is_array() ? v : Json::array({v});
    if (&v == &values.front()) F = vector.size();
    if (vector.size() != F) line.wrong("values", fmt::format("vectors of {} numbers each", F));
    for (const Json& x : vector) e.values.push_back(finite_number(x, line, "values"));
  }
  e.shape = {static_cast<int64_t>(values.size()), static_cast<int64_t>(F)};
}

std::vector<float> numbers_of(const JsonView& line) {
  const Json& target = line.at("target");
  std::vector<float> numbers;
  for (const Json& x : target.is_array() ? target : Json::array({target}))
    numbers.push_back(finite_number(x, line, "target"));
  if (numbers.empty()) line.wrong("target", "a number, or a list of numbers");
  return numbers;
}

// Cuts what is too long; true where it was.
bool finish(Example& e, const SequenceFormat& format) {
  const int64_t F = e.shape.rank == 2 ? e.shape[1] : 0;
  const int64_t L = F > 0 ? e.shape[0] : static_cast<int64_t>(e.tokens.size());
  const bool cut = format.longest > 0 && L > format.longest;
  const int64_t kept = cut ? format.longest : L, all = kept + (format.place ? 1 : 0);
  if (F > 0) {
    e.values.resize(static_cast<size_t>(kept * F));
    e.values.resize(static_cast<size_t>(all * F), 0.0f);
    e.shape[0] = all;
  } else {
    e.tokens.resize(static_cast<size_t>(kept));
    e.tokens.resize(static_cast<size_t>(all), 0);
  }
  return cut;
}

}  // namespace

SequenceExamples::SequenceExamples(const std::vector<std::string>& sources,
                                   const SequenceFormat& format, const Encode& encode,
                                   std::vector<std::string> names)
    : names_(std::move(names)), numbers_(format.numbers), answers_(format.answers) {
  std::vector<Answer> answers;
  const auto read_line = [&](const JsonView& line, const fs::path& folder) {
    Example e;
    if (line.has("values")) {
      read_series(line, folder, format, e);
    } else {
      e.tokens = ids_of(line, format, encode);
    }
    require(!e.tokens.empty() || !e.values.empty(), "{}: the sequence is empty", line.where());
    const int64_t inputs = e.shape.rank == 2 ? e.shape[1] : 0;
    if (all_.empty()) inputs_ = inputs;
    require(inputs == inputs_, "{}: expected {}, as in the first line, got {}", line.where(),
            inputs_ > 0 ? fmt::format("vectors of {} numbers", inputs_) : "a text",
            inputs > 0 ? fmt::format("vectors of {}", inputs) : "a text");
    if (answers_ && numbers_) {
      e.numbers = numbers_of(line);
      const auto width = static_cast<int64_t>(e.numbers.size());
      if (all_.empty()) outputs_ = width;
      require(width == outputs_,
              "{}: expected a target of {} numbers, as in the first line, got {}", line.where(),
              outputs_, width);
    } else if (answers_) {
      answers.push_back(read_answer(line));
    }
    where_.push_back(line.where());
    cut_ += finish(e, format);
    all_.push_back(std::move(e));
  };
  for (const std::string& source : sources) {
    require(fs::path(source).extension() == ".jsonl",
            "{}: expected a .jsonl with a sequence in each line (\"text\", \"tokens\" or "
            "\"values\"){}",
            source,
            !answers_  ? ""
            : numbers_ ? " and its \"target\""
                       : " and its \"label\"");
    const fs::path folder = fs::path(source).parent_path();
    read_json_lines(read_file(source), source,
                    [&](const JsonView& line) { read_line(line, folder); });
  }
  require(!all_.empty(), "no sequences in {}", fmt::join(sources, ", "));
  if (numbers_ || !answers_) return;
  const std::vector<int32_t> classes = classes_of(answers, names_);
  for (size_t i = 0; i < classes.size(); ++i) all_[i].label = classes[i];
  outputs_ = std::max(int64_t{1} + *std::max_element(classes.begin(), classes.end()),
                      static_cast<int64_t>(names_.size()));
}

std::string SequenceExamples::description() const {
  return numbers_ ? fmt::format("{} sequences with {} numbers", size(), outputs_)
                  : fmt::format("{} sequences of {} classes", size(), outputs_);
}

uint64_t SequenceExamples::checksum() const {
  Hash sum;
  const auto add = [&](const auto& list) {
    sum.add_word(list.size());
    sum.add_words(list.data(), list.size() * sizeof list[0]);
  };
  for (const Example& e : all_) {
    add(e.tokens);
    add(e.values);
    add(e.numbers);
    sum.add_word(static_cast<uint32_t>(e.label));
  }
  return sum.h;
}

void SequenceExamples::require_kind(int64_t inputs, int64_t outputs) const {
  const auto what = [](int64_t n) {
    return n > 0 ? fmt::format("series of vectors of {} numbers", n) : std::string("texts");
  };
  require(inputs == inputs_, "the model reads {}, the data has {}", what(inputs), what(inputs_));
  if (!answers_) return;
  require(numbers_ ? outputs == outputs_ : outputs >= outputs_,
          "the model says {} {}, the data has {}", outputs,
          numbers_ ? "numbers of a sequence" : "classes", outputs_);
}

}  // namespace krait
