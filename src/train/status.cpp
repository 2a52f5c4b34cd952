#include "krait/train/status.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>

namespace krait {

// Time between two lines: on a terminal as often as an eye can follow, in a file rarely.
constexpr std::chrono::milliseconds kTerminalPause{100}, kFilePause{10000};

std::string clock_text(double seconds) {
  const auto s = static_cast<int64_t>(std::llround(seconds));
  if (s < 3600) return fmt::format("{}:{:02}", s / 60, s % 60);
  return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

std::string status_text(const LogRecord& r, int64_t steps, const LogRecord& validated,
                        double seconds_left, const std::string& unit) {
  std::string s = fmt::format("step {}/{}  loss {:.4f}", r.step, steps, r.loss);
  if (validated.valid_loss) s += fmt::format("  valid {:.4f}", *validated.valid_loss);
  if (validated.valid_accuracy) s += fmt::format("  accuracy {:.3f}", *validated.valid_accuracy);
  s += fmt::format("  norm {:.3f}  lr {:.2e}  {:.{}f} {}/s", r.grad_norm, r.lr, r.tokens_per_s,
                   r.tokens_per_s < 10 ? 1 : 0, unit);
  if (std::isfinite(seconds_left)) s += fmt::format("  {} left", clock_text(seconds_left));
  return s;
}

StatusLine::StatusLine(bool quiet) : quiet_(quiet), terminal_(::isatty(STDERR_FILENO) != 0) {}

StatusLine::~StatusLine() {
  if (shown_) std::fputs("\n", stderr);
}

void StatusLine::clear() {
  if (shown_) std::fputs("\r\x1b[K", stderr);
  shown_ = false;
}

void StatusLine::update(const LogRecord& r, int64_t steps) {
  if (r.valid_loss) validated_ = r;
  if (quiet_) return;
  if (first_step_ < 0) {
    first_step_ = r.step;
    first_seconds_ = r.seconds;
  }
  const Clock::time_point now = Clock::now();
  const bool first_or_last = r.step == first_step_ || r.step == steps;
  const bool wanted = first_or_last || (r.valid_loss && !terminal_);
  if (!wanted && now - written_ < (terminal_ ? kTerminalPause : kFilePause)) return;
  written_ = now;
  const double rate = (r.seconds - first_seconds_) / static_cast<double>(r.step - first_step_);
  const double left = rate * static_cast<double>(steps - r.step);  // NaN at the first step
  const std::string text = status_text(r, steps, validated_, left, unit_);
  std::fprintf(stderr, terminal_ ? "\r\x1b[K%s" : "%s\n", text.c_str());
  std::fflush(stderr);
  shown_ = terminal_;
}

}  // namespace krait
