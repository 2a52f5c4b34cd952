// A file for --config, read for a command that has an option of every kind.
#include <CLI/CLI.hpp>

#include "krait/cli/config_file.h"
#include "krait/testing/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto app = [] {
    auto a = std::make_unique<CLI::App>("", "work");
    static int64_t steps = 0;
    static bool fast = false;
    static std::vector<std::string> files;
    static std::string betas;
    a->add_option("--steps", steps);
    a->add_flag("--fast", fast);
    a->add_option("--data", files);
    a->add_option("--betas", betas);
    return a;
  }();
  return krait::fuzz::run(data, size, [](std::span<const std::byte> bytes) {
    std::vector<std::string> words = {"--fast"};
    krait::cli::add_config_text(*app, {reinterpret_cast<const char*>(bytes.data()), bytes.size()},
                                "f", words);
  });
}
