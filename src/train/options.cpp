#include "krait/train/options.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numbers>

#include "krait/base/error.h"
#include "krait/data/text.h"

namespace krait {

std::string to_string(Schedule s) {
  switch (s) {
    case Schedule::constant: return "constant";
    case Schedule::linear: return "linear";
    case Schedule::cosine: return "cosine";
    case Schedule::wsd: return "wsd";
  }
  return {};
}

std::string to_string(Recompute r) {
  switch (r) {
    case Recompute::none: return "none";
    case Recompute::cheap: return "cheap";
    case Recompute::layer: return "layer";
  }
  return {};
}

std::string to_string(Order o) { return o == Order::shuffle ? "shuffle" : "sequential"; }

double learning_rate(const TrainOptions& o, int64_t step) {
  if (step <= o.warmup) return o.lr * static_cast<double>(step) / static_cast<double>(o.warmup);
  // Where the descent begins: step `start` still has the full rate.
  int64_t start = o.warmup;
  if (o.schedule == Schedule::wsd) start = std::max(start, o.steps - (o.steps + 4) / 5);
  const int64_t length = std::max<int64_t>(o.steps - start, 1);
  const double p =
      std::clamp(static_cast<double>(step - start) / static_cast<double>(length), 0.0, 1.0);
  switch (o.schedule) {
    case Schedule::constant: return o.lr;
    case Schedule::linear:
    case Schedule::wsd: return o.lr + (o.min_lr - o.lr) * p;
    case Schedule::cosine:
      return o.min_lr + (o.lr - o.min_lr) * 0.5 * (1.0 + std::cos(std::numbers::pi * p));
  }
  return o.lr;
}

void check_size_of_step(const TrainOptions& t) {
  int64_t room = int64_t{1} << 40;
  for (const int64_t n : {t.batch_size, t.seq_len, t.grad_accum}) room /= std::max<int64_t>(1, n);
  require(room > 0, "batch-size {}, seq-len {}, grad-accum {}: no step can have that many tokens",
          t.batch_size, t.seq_len, t.grad_accum);
}

void check(const RunOptions& o) {
  const TrainOptions& t = o.train;
  const auto positive = [](const char* name, int64_t v) {
    require(v > 0, "{}: expected a number above 0, got {}", name, v);
  };
  positive("batch-size", t.batch_size);
  positive("seq-len", t.seq_len);
  positive("grad-accum", t.grad_accum);
  positive("steps", t.steps);
  check_size_of_step(t);
  require(t.lr >= 0 && std::isfinite(t.lr), "lr: expected a number from 0 on, got {}", t.lr);
  require(t.min_lr >= 0 && t.min_lr <= t.lr, "min-lr: expected a number from 0 to lr = {}, got {}",
          t.lr, t.min_lr);
  require(t.warmup >= 0, "warmup: expected a number of steps from 0 on, got {}", t.warmup);
  require(t.beta1 >= 0 && t.beta1 < 1 && t.beta2 >= 0 && t.beta2 < 1,
          "betas: expected numbers from 0 to below 1, got {},{}", t.beta1, t.beta2);
  require(t.eps > 0, "eps: expected a number above 0, got {}", t.eps);
  require(t.weight_decay >= 0, "weight-decay: expected a number from 0 on, got {}", t.weight_decay);
  require(t.clip >= 0, "clip: expected a number from 0 on, got {}", t.clip);
  require(t.dropout >= 0 && t.dropout < 1, "dropout: expected a number from 0 to below 1, got {}",
          t.dropout);
  require(t.drop_path >= 0 && t.drop_path < 1,
          "drop-path: expected a number from 0 to below 1, got {}", t.drop_path);
  require(t.label_smoothing >= 0 && t.label_smoothing < 1,
          "label-smoothing: expected a number from 0 to below 1, got {}", t.label_smoothing);
  require(t.crop_scale > 0 && t.crop_scale <= 1,
          "crop-scale: expected a number above 0, up to 1, got {}", t.crop_scale);
  require(t.hflip >= 0 && t.hflip <= 1, "hflip: expected a number from 0 to 1, got {}", t.hflip);
  require(!t.carry_state || t.order == Order::sequential,
          "carry-state reads the data in order: it cannot be combined with order shuffle");
  require(t.dtype == DType::f32 || t.dtype == DType::bf16, "dtype: expected {} or {}, got {}",
          name_of(DType::f32), name_of(DType::bf16), name_of(t.dtype));
  require(o.task.empty() || o.task == "classification" || o.task == "regression",
          "task: expected classification or regression, got {}", o.task);
  require(o.pooling.empty() || o.pooling == "last" || o.pooling == "mean" || o.pooling == "token",
          "pooling: expected last, mean or token, got {}", o.pooling);
  require(o.pooling.empty() || !o.task.empty(), "pooling: it belongs to a task");
  require(!o.data.empty(), "no training data was given");
  require(std::count(o.data.begin(), o.data.end(), "-") +
                  std::count(o.valid.begin(), o.valid.end(), "-") <=
              1,
          "stdin can only be read once");
  for (const auto* sources : {&o.data, &o.valid})
    require(std::count(sources->begin(), sources->end(), "") == 0,
            "data, valid: expected the name of a file or folder, got an empty one");
  require(!o.out.empty(), "no directory for the run was given");
  check_utf8(to_toml(o), "config.toml of the run");  // a name of a file may be anything
}

namespace {

std::string quoted(const std::string& s) {
  std::string out = "\"";
  for (const char c : s) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += fmt::format("\\{}", c);
    } else if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\u{:04x}", byte);
    } else {
      out += c;
    }
  }
  return out + "\"";
}

// Sources are found again from any folder.
std::string source(const std::string& s) {
  return s == "-" ? s : std::filesystem::absolute(s).lexically_normal().string();
}

std::string sources(const std::vector<std::string>& list) {
  std::string out;
  for (const std::string& s : list) out += (out.empty() ? "" : ", ") + quoted(source(s));
  return "[" + out + "]";
}

// A preset's name stays one; a file becomes absolute.
std::string model_name(const std::string& m) { return std::filesystem::exists(m) ? source(m) : m; }

}  // namespace

std::string to_toml(const RunOptions& o) {
  const TrainOptions& t = o.train;
  std::string out;
  const auto add = [&](const char* key, const std::string& value) {
    out += fmt::format("{} = {}\n", key, value);
  };
  const auto number = [&](const char* key, auto value) { add(key, fmt::format("{}", value)); };
  if (!o.model.empty()) add("model", quoted(model_name(o.model)));
  if (!o.from.empty()) add("from", quoted(source(o.from)));
  if (!o.task.empty()) add("task", quoted(o.task));
  if (!o.pooling.empty()) add("pooling", quoted(o.pooling));
  if (!o.tokenizer.empty()) add("tokenizer", quoted(model_name(o.tokenizer)));
  add("data", sources(o.data));
  if (!o.valid.empty()) add("valid", sources(o.valid));
  number("batch-size", t.batch_size);
  number("seq-len", t.seq_len);
  number("grad-accum", t.grad_accum);
  number("steps", t.steps);
  add("optimizer", "\"adamw\"");
  number("lr", t.lr);
  add("schedule", quoted(to_string(t.schedule)));
  number("warmup", t.warmup);
  number("min-lr", t.min_lr);
  add("betas", fmt::format("[{}, {}]", t.beta1, t.beta2));
  number("eps", t.eps);
  number("weight-decay", t.weight_decay);
  number("clip", t.clip);
  number("dropout", t.dropout);
  number("drop-path", t.drop_path);
  number("label-smoothing", t.label_smoothing);
  number("crop-scale", t.crop_scale);
  number("hflip", t.hflip);
  add("order", quoted(to_string(t.order)));
  add("carry-state", t.carry_state ? "true" : "false");
  add("recompute", quoted(to_string(t.recompute)));
  number("eval-every", o.eval_every);
  number("save-every", o.save_every);
  number("keep", o.keep);
  number("sample-every", o.sample_every);
  add("sample-prompt", quoted(o.sample_prompt));
  if (!o.log.empty()) add("log", quoted(source(o.log)));
  add("dtype", quoted(std::string(name_of(t.dtype))));
  number("seed", t.seed);
  return out;
}

}  // namespace krait
