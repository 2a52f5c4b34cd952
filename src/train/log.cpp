#include "krait/train/log.h"

#include <limits>

#include "krait/base/error.h"
#include "krait/base/file.h"
#include "krait/base/json.h"

namespace krait {

namespace {

std::string line_of(const LogRecord& r) {
  OrderedJson j;  // NaN is written as null
  j["step"] = r.step;
  j["loss"] = r.loss;
  j["grad_norm"] = r.grad_norm;
  j["lr"] = r.lr;
  j["tokens"] = r.tokens;
  j["tokens_per_s"] = r.tokens_per_s;
  j["seconds"] = r.seconds;
  if (r.valid_loss) j["valid_loss"] = *r.valid_loss;
  if (r.valid_accuracy) j["valid_accuracy"] = *r.valid_accuracy;
  if (r.dropped) j["dropped"] = *r.dropped;
  return j.dump() + "\n";
}

LogRecord record_of(const Json& json, const std::string& where) {
  const JsonView v(json, where);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  LogRecord r;
  r.step = v.integer("step");
  r.loss = v.number("loss", nan);
  r.grad_norm = v.number("grad_norm", nan);
  r.lr = v.number("lr", nan);
  r.tokens = v.integer("tokens", 0);
  r.tokens_per_s = v.number("tokens_per_s", nan);
  r.seconds = v.number("seconds", nan);
  if (v.has("valid_loss")) r.valid_loss = v.number("valid_loss");
  if (v.has("valid_accuracy")) r.valid_accuracy = v.number("valid_accuracy");
  if (v.has("dropped")) r.dropped = v.integer("dropped");
  return r;
}

}  // namespace

std::vector<LogRecord> read_log(const std::filesystem::path& path) {
  const std::string text = read_file(path);
  std::vector<LogRecord> records;
  int64_t number = 0;
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos;
       begin = end + 1) {
    ++number;
    if (end == begin) continue;
    const std::string where = fmt::format("{}:{}", path.string(), number);
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    records.push_back(record_of(parse_json(line, where), where));
  }
  return records;
}

RunLog::RunLog(std::filesystem::path path, int64_t step) : path_(std::move(path)) {
  if (!is_replaceable(path_)) return;
  std::string kept;
  if (step > 0 && std::filesystem::exists(path_))
    for (const LogRecord& r : read_log(path_))
      if (r.step <= step) kept += line_of(r);
  write_file(path_, kept);
}

void RunLog::append(const LogRecord& record) { append_file(path_, line_of(record)); }

}  // namespace krait
