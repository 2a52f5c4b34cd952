// Log lines, always on stderr: stdout carries results only.
#pragma once
#include <spdlog/spdlog.h>

namespace krait {

// Call once at start. quiet: warnings and errors only.
void init_log(bool quiet);

}  // namespace krait
