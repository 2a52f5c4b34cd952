// How far a long piece of work is, on stderr: only on a terminal, and only once it has taken a second.
#pragma once
#include <cstdint>
#include <string>

#include "krait/base/clock.h"

namespace krait::cli {

class Progress {
 public:
  // `total` 0: not known. `unit` is what is counted, as "tokens".
  Progress(std::string unit, int64_t total, bool quiet);
  ~Progress();  // takes the line away
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void add(int64_t n);

 private:
  std::string unit_;
  int64_t total_, done_ = 0;
  bool shown_, drawn_ = false;
  Clock::time_point start_ = Clock::now(), last_ = start_;
};

}  // namespace krait::cli
