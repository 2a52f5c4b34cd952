// Progress of a run on stderr: one line that is written over on a terminal, else a line now and then.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>

#include "krait/train/log.h"

namespace krait {

// "step 120/1000  loss 1.234  valid 1.301  accuracy 0.712  norm 0.52  lr 1.00e-03  6120 tokens/s  2:10 left".
// `validated`: the last record with a validation loss, or one without. `unit`: what the record's tokens are.
std::string status_text(const LogRecord& r, int64_t steps, const LogRecord& validated,
                        double seconds_left, const std::string& unit);

// "1:02:03", "2:10".
std::string clock_text(double seconds);

class StatusLine {
 public:
  explicit StatusLine(bool quiet);
  ~StatusLine();
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;
  void count(const std::string& unit) { unit_ = unit; }  // "tokens" where nothing is said
  void update(const LogRecord& r, int64_t steps);
  void clear();  // before something else is written
  // The last record with a validation loss, or one without.
  const LogRecord& validated() const { return validated_; }

 private:
  using Clock = std::chrono::steady_clock;
  bool quiet_, terminal_;
  bool shown_ = false;
  LogRecord validated_;
  std::string unit_ = "tokens";
  int64_t first_step_ = -1;  // of this process, with the seconds at its end
  double first_seconds_ = 0;
  Clock::time_point written_{};
};

}  // namespace krait
