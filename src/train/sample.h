// A look at what a model under training has learnt: a text that it continues.
#pragma once
#include <string>

#include "krait/io/tokenizer/tokenizer.h"
#include "krait/models/language_model.h"

namespace krait {

// `n` tokens after the prompt, drawn at temperature 0.8 from the `seed`. Only the new text.
std::string sample_text(const models::LanguageModel& model, const Tokenizer& tokenizer,
                        const std::string& prompt, int64_t n, DType activation, uint64_t seed);

}  // namespace krait
