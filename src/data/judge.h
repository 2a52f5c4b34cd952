// What a model says of examples as a whole (images, texts, series), and how right it is.
#pragma once
#include <functional>
#include <optional>
#include <span>

#include "krait/data/examples.h"

namespace krait {

struct Judgement {
  int64_t examples = 0;
  double loss = 0;  // mean of all targets: nats, or squared errors
  // Of classes: the share whose class has the largest output, and is among the five largest (all, where there
  // are fewer). Equal outputs count as larger.
  double accuracy = 0, top5_accuracy = 0;
  // Of numbers: means over all of them; R² is 1 - Σ (y - t)² / Σ (t - mean of t)², the mean over the numbers
  // of an example; -infinity where some number is the same in all examples.
  bool numbers = false;
  double mse = 0, mae = 0, r2 = 0;
};

// Judges `B` examples at once in the memory of `arena`, which is replaced by a larger one where it
// must. `each` gets the size of every batch; where it returns false there is no judgement.
std::optional<Judgement> judge(const models::Model& model, const Examples& examples,
                               DType activation, int64_t B, Arena& arena,
                               const std::function<bool(int64_t)>& each = {});

// What the model says of each example, in order: the scores of its classes, or its numbers.
void predict(const models::Model& model, const Examples& examples, DType activation, int64_t B,
             Arena& arena, const std::function<void(std::span<const float>)>& each);

}  // namespace krait
