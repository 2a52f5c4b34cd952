#include "krait/cli/examples.h"

#include "krait/data/images.h"
#include "krait/data/sequences.h"

namespace krait::cli {

std::unique_ptr<Examples> open_examples(const models::Model& model, const ModelArgs& args,
                                        const std::vector<std::string>& data, bool answers) {
  if (const auto* vision = dynamic_cast<const models::VisionMamba*>(&model)) {
    const models::VisionConfig& c = vision->config();
    const ImageShape shape = {c.channels, c.image};
    if (!answers) return std::make_unique<ImageExamples>(data, shape);
    auto images = std::make_unique<ImageExamples>(data, shape, c.labels);
    images->require_classes(c.classes);
    return images;
  }
  const models::Config& c = dynamic_cast<const models::LanguageModel&>(model).config();
  SequenceFormat format;
  format.vocab_size = c.vocab_size;
  format.numbers = c.task.kind == models::Task::regression;
  format.answers = answers;
  format.inputs = c.inputs;
  format.place = c.task.pooling == models::Task::token;
  std::unique_ptr<Tokenizer> tokenizer;
  const Encode encode = [&](std::string_view text) {
    if (!tokenizer) tokenizer = need_tokenizer(args.tokenizer, args.model, c.vocab_size);
    return tokenizer->encode(text, false);
  };
  auto sequences = std::make_unique<SequenceExamples>(data, format, encode, c.task.labels);
  sequences->require_kind(c.inputs, c.task.outputs);
  return sequences;
}

}  // namespace krait::cli
