// The checkpoints of a run: RUN/last, RUN/best and RUN/step-N, each a model directory in the Hugging Face
// layout with weights in float32, the tokenizer, and the trainer's own files beside them. Each takes its
// place in one rename: a run killed at any moment leaves the one before.
#pragma once
#include <filesystem>
#include <string>

#include "krait/train/trainer.h"

namespace krait {

// What a run knows besides its trainer: trainer.json.
struct Progress {
  int64_t step = 0;
  double seconds = 0;    // of work
  double best_loss = 0;  // of best/; infinite where there is none
  // Of the steps since the last checkpoint that was due, which compete for best/ where nothing is validated.
  double loss_sum = 0;
  int64_t loss_steps = 0;
};

// Error where a weight is not finite: a checkpoint that cannot be used replaces none that can.
void write_checkpoint(const std::filesystem::path& directory, const models::Model& model,
                      const Trainer& trainer, const Progress& progress,
                      const std::string& tokenizer_json);

Progress read_progress(const std::filesystem::path& checkpoint);

// The last whole checkpoint of a run. Error where there is none.
std::filesystem::path last_checkpoint(const std::filesystem::path& run);

// Makes `to` a checkpoint with the files of `from` (hard links where the file system has them: files of
// checkpoints are replaced, never changed).
void share_checkpoint(const std::filesystem::path& from, const std::filesystem::path& to);

// Leaves the `keep` latest of RUN/step-N.
void prune_checkpoints(const std::filesystem::path& run, int64_t keep);

}  // namespace krait
