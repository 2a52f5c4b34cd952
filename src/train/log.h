// log.jsonl: one JSON object a training step.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

namespace krait {

struct LogRecord {
  int64_t step = 0;
  double loss = 0, grad_norm = 0, lr = 0;
  int64_t tokens = 0;       // inputs read since the start of the run
  double tokens_per_s = 0;  // of this step
  double seconds = 0;       // since the start of the run, pauses left out
  std::optional<double> valid_loss;
  std::optional<double> valid_accuracy = {};  // of classes: the share that is judged right
  std::optional<int64_t> dropped = {};        // of models with experts: see StepResult
};

// Numbers that are not finite (null in the file) are read as NaN. A last line that was cut while it was
// written is left out; any other malformed line is an Error with its number.
std::vector<LogRecord> read_log(const std::filesystem::path& path);

class RunLog {
 public:
  // Goes on with a log: records after `step` are dropped (a checkpoint older than the log's end); with
  // `step` 0 the log starts anew. Into a pipe, a device or a descriptor such as /dev/stdout only new lines go.
  RunLog(std::filesystem::path path, int64_t step);
  // One line, handed to the system at once.
  void append(const LogRecord& record);

 private:
  std::filesystem::path path_;
};

}  // namespace krait
