#include "krait/cli/commands.h"

#include <array>

namespace krait::cli {

std::span<const Command> commands() {
  static constexpr std::array kCommands = {
      Command{"train", "train a model, from the start or from where a run stopped", add_train},
      Command{"generate", "continue prompts, token by token", add_generate},
      Command{"eval", "how well a model predicts text: likelihood, perplexity, last words",
              add_eval},
      Command{"predict", "what a model says of images, texts and series as a whole", add_predict},
      Command{"logits", "logits of token sequences, as an array", add_logits},
      Command{"inspect", "what a model is: architecture, sizes, memory", add_inspect},
      Command{"convert", "write a model in another layout or number type", add_convert},
      Command{"tokenize", "text to token ids, and back", add_tokenize},
      Command{"bench", "how fast this machine runs ops, training, prompts and decoding", add_bench},
      Command{"plot", "loss, gradient norm, learning rate and throughput of training runs",
              add_plot},
  };
  return kCommands;
}

}  // namespace krait::cli
