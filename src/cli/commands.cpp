#include "krait/cli/command.h"

namespace krait::cli {

std::span<const Command> commands() {
  static constexpr std::array<Command, 0> kCommands = {};
  return kCommands;
}

}  // namespace krait::cli
