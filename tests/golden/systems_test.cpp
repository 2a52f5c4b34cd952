// Every case is of a system that some test runs: one of a new name must not pass by being overlooked.
#include <gtest/gtest.h>

#include "krait/testing/golden.h"

namespace krait {
namespace {

using namespace krait::testing;

// Those that are neither language models nor layers of S4; one a line.
// clang-format off
const std::set<std::string> kOthers = {
    "causal-conv1d",
    "mamba3-mimo",
    "mamba3-siso",
    "norm",
    "selective-scan",
    "selective-state-update",
    "ssd",
    "switch mixture of experts",
    "vim",
    kS4InitialValues,
};
// clang-format on

TEST(Golden, EveryCaseIsOfASystemWithATest) {
  KRAIT_GOLDEN_OR_SKIP(folder);
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (!std::filesystem::exists(entry.path() / "case.json")) continue;
    const std::string system = read_json(entry.path() / "case.json").at("system");
    EXPECT_TRUE(is_language_model(system) || is_s4_layer(system) || kOthers.count(system) > 0)
        << entry.path().filename().string() << ": no test runs the system \"" << system << "\"";
  }
}

}  // namespace
}  // namespace krait
