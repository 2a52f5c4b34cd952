#include "krait/base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>

#include <memory>

namespace krait {

void init_log(bool quiet) {
  auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
  auto logger = std::make_shared<spdlog::logger>("krait", sink);
  logger->set_pattern("%^%l:%$ %v");
  logger->set_level(quiet ? spdlog::level::warn : spdlog::level::info);
  spdlog::set_default_logger(logger);
}

}  // namespace krait
