// State files: what B sequences remember, kept as safetensors.
//
//   state.<layer>.conv, state.<layer>.ssm   (B, ...) float32
//   state.<layer>.k, .v (B, T, ...) and .length (B, 1), float32: T tokens of the longest sequence, zeros behind
//   logits                                  (B, V) float32: what each sequence predicts next
//   metadata: format "krait-state", version, model (the hash that names it), tokens ("12,7": read by each row)
#pragma once
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "krait/infer/session.h"
#include "krait/io/tensor_file.h"

namespace krait {

// Whole or not at all.
void save_state(const std::filesystem::path& path, std::span<const Snapshot> rows,
                const std::string& model_hash);

// Error: not a state file, another version, another model (both are named), a tensor that is missing or of
// another shape.
std::vector<Snapshot> load_state(const std::filesystem::path& path,
                                 const models::LanguageModel& model, const std::string& model_hash);

// The same of a file that was read already.
std::vector<Snapshot> parse_state(const TensorFile& file, const models::LanguageModel& model,
                                  const std::string& model_hash);

}  // namespace krait
