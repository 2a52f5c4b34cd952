// The memory of a training run, known before it starts.
#pragma once
#include <cstddef>

#include "krait/models/model.h"
#include "krait/train/options.h"

namespace krait {

struct TrainingMemory {
  size_t parameters = 0;  // weights, moments, and gradients where those of several batches add up
  size_t step = 0;        // the step arena: activations, their gradients, scratch, other gradients
  size_t states = 0;      // carried from batch to batch
  size_t total() const { return parameters + step + states; }
};

// What to allocate parameters for.
nn::Purpose purpose_of(const TrainOptions& o);

// Exact for data without document borders. Where `model` has no memory for training yet, its parameters
// are planned as those of a run in o.dtype. Error where the model cannot be trained on sequences of seq_len or
// with carried states, and as require_memory where not even the states fit.
TrainingMemory plan_training(models::Model& model, const TrainOptions& o);

// Throws Error with the plan's numbers where the machine cannot give that much.
void require_memory(const TrainingMemory& m, const TrainOptions& o);

}  // namespace krait
