#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "krait/base/log.h"
#include "krait/cli/command.h"
#include "krait/cli/signals.h"
#include "krait/tensor/device.h"

namespace krait::cli {

Device Common::resolved_device() const {
  if (device == "auto") {
    std::string reason;
    const bool none = cuda_devices(&reason).empty();
    if (none && built_with_cuda()) spdlog::info("on the CPU: {}", reason);
  }
  return find_device(device);
}

std::optional<DType> Common::chosen_dtype() const {
  if (dtype.empty()) return std::nullopt;
  return dtype == "bfloat16" ? DType::bf16 : DType::f32;
}

static std::atomic<bool> interrupt_seen = false;

const std::atomic<bool>& interrupted() { return interrupt_seen; }

void check_interrupt() {
  if (interrupt_seen) throw Interrupted{};
}

void install_signal_handlers() {
  struct sigaction action = {};
  action.sa_handler = [](int) {
    if (interrupt_seen.exchange(true)) _exit(kInterrupted);
  };
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);  // no SA_RESTART: a blocked read returns
  sigaction(SIGTERM, &action, nullptr);
  struct sigaction hangup = {};
  sigaction(SIGHUP, nullptr, &hangup);
  if (hangup.sa_handler != SIG_IGN) sigaction(SIGHUP, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);  // a write to a closed pipe returns EPIPE
}

static void require_written(bool ok) {
  if (ok) return;
  const int error = errno;
  if (error == EPIPE) throw ClosedOutput{};
  fail("cannot write to standard output: {}", std::strerror(error));
}

void print(std::string_view text) {
  require_written(std::fwrite(text.data(), 1, text.size(), stdout) == text.size());
}

void flush_output() { require_written(std::fflush(stdout) == 0); }

void print_json(const OrderedJson& value) {
  print(value.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + "\n");
  flush_output();
}

}  // namespace krait::cli
