#include "krait/cli/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace krait::cli {

Progress::Progress(std::string unit, int64_t total, bool quiet)
    : unit_(std::move(unit)), total_(total), shown_(!quiet && isatty(STDERR_FILENO)) {}

Progress::~Progress() {
  if (drawn_) std::fputs("\r\x1b[K", stderr);
}

void Progress::add(int64_t n) {
  done_ += n;
  const double elapsed = seconds_since(start_);
  if (!shown_ || elapsed < 1 || seconds_since(last_) < 0.2) return;
  last_ = Clock::now();
  drawn_ = true;
  const double rate = static_cast<double>(done_) / elapsed;
  std::string line = fmt::format("\r\x1b[K{} {}, {:.0f}/s", done_, unit_, rate);
  if (total_ > 0) {
    constexpr int64_t kWidth = 24;
    const int64_t filled = std::min(kWidth, kWidth * done_ / total_);
    line = fmt::format("\r\x1b[K[{}{}] {}/{} {}, {:.0f}/s, {:.0f} s left",
                       std::string(static_cast<size_t>(filled), '#'),
                       std::string(static_cast<size_t>(kWidth - filled), '.'), done_, total_, unit_,
                       rate, static_cast<double>(std::max<int64_t>(total_ - done_, 0)) / rate);
  }
  std::fputs(line.c_str(), stderr);
}

}  // namespace krait::cli
