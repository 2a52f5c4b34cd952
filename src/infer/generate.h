// Continues sequences token by token until each has reached its end.
#pragma once
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "krait/infer/session.h"
#include "krait/io/tokenizer/tokenizer.h"
#include "krait/ops/sampler/sampler.h"

namespace krait {

enum class Finish { length, stop, eos, cancelled };
const char* name_of(Finish f);  // "length", "stop", "eos", "cancelled"

struct GenerateOptions {
  int64_t max_new = 128;
  ops::SamplerOptions sampler;
  std::vector<std::string> stop;  // needs a tokenizer
  std::vector<int32_t> eos;
  // Each sequence reads its own last token too, so that it can be continued: `finished` hands out what it
  // remembers then.
  bool read_last = false;

  const Tokenizer* tokenizer = nullptr;                         // null: no text
  std::function<void(size_t row, std::string_view text)> text;  // as it becomes certain
  std::function<void(size_t row, Snapshot)> finished;           // with read_last
  std::function<bool()> cancelled;                              // asked once a token
};

struct Generated {
  std::vector<int32_t> tokens;  // an end-of-sequence token included
  std::vector<float> logprobs;  // of each token
  std::string text;             // up to a stop, which is left out
  Finish finish = Finish::length;
};

// What is known of a row before its first new token.
struct Start {
  std::vector<int32_t>
      history;          // what a repetition penalty looks at, and what text is decoded after
  uint64_t stream = 0;  // rows with the same stream and position draw the same numbers
};

// Row b of the session has read its prompt, starts[b].history. Rows that end are taken out of the session.
// The draw of a token depends on the seed, the row's stream and how many tokens the row has read: a sequence
// that is saved and resumed gives the same tokens as one that is not.
std::vector<Generated> generate(Session& session, std::vector<Start> starts,
                                const GenerateOptions& options);

}  // namespace krait
