// What a subcommand is, and what all of them share. One file a subcommand: it defines the function that
// adds its options to an app and returns the work; commands.cpp lists them.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "krait/base/json.h"
#include "krait/tensor/tensor.h"

namespace CLI {
class App;
}

namespace krait::cli {

// The options that every command has.
struct Common {
  std::string device = "auto";
  std::string dtype;  // "float32", "bfloat16" or "": the command's own choice
  int threads = 0;    // 0: as many as the machine has
  uint64_t seed = 0;
  bool quiet = false;
  bool json = false;
  std::string config;

  // Error where this build or machine does not have the device.
  Device resolved_device() const;
  std::optional<DType> chosen_dtype() const;
};

enum ExitCode { kDone = 0, kFailed = 1, kWrongUsage = 2, kInterrupted = 130 };

// Returns an exit code. Error thrown: exit code 1 with its message; Usage: 2; Interrupted: 130.
using Work = std::function<int(const Common&)>;

struct Command {
  const char* name;
  const char* help;
  Work (*add)(CLI::App& app);
};

std::span<const Command> commands();

// Options that contradict each other, where the parser could not know.
class Usage : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Interrupted {};

// True after the first SIGINT or SIGTERM: finish, save, return kInterrupted. A second one ends the program.
const std::atomic<bool>& interrupted();
// Throws Interrupted. For loops that have nothing to save.
void check_interrupt();

// The program, less its name: "generate", "model", ... Returns the exit code.
int run(int argc, const char* const* argv);

// ---- stdout: results only. Error where a write fails; ClosedOutput where the reader has gone.

struct ClosedOutput {};

void print(std::string_view text);
void flush_output();

template <class... Args>
void print_line(fmt::format_string<Args...> format, Args&&... args) {
  print(fmt::format(format, std::forward<Args>(args)...) + "\n");
}

// One line, flushed. Numbers that are not finite become null, bytes that are not UTF-8 U+FFFD.
void print_json(const OrderedJson& value);

}  // namespace krait::cli
