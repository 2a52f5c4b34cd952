#include "krait/cli/commands.h"

#include <array>

namespace krait::cli {

std::span<const Command> commands() {
  static constexpr std::array kCommands = {
      Command{"train", "train a model, from the start or from where a run stopped", add_train},
      Command{"plot", "loss, gradient norm, learning rate and throughput of training runs",
              add_plot},
  };
  return kCommands;
}

}  // namespace krait::cli
