// The examples that a model is to judge, as eval and predict open them.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "krait/cli/model_args.h"
#include "krait/data/examples.h"

namespace krait::cli {

// How many are judged at once.
constexpr int64_t kExamples = 8;

// `answers`: each has one, by which the model is measured. Error where the data is not what the model reads.
std::unique_ptr<Examples> open_examples(const models::Model& model, const ModelArgs& args,
                                        const std::vector<std::string>& data, bool answers);

}  // namespace krait::cli
