// Decoders of tokenizer.json, as a chain of steps that tokens stream through.
#pragma once
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace krait {

// Takes the texts of tokens. A token may come in several parts: the first has `begin`, the last `end`
// set. Parts are whole characters.
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  virtual void part(std::string_view text, bool begin, bool end) = 0;
  virtual void finish() = 0;  // no part comes after
};

// A step of a chain: what it takes, it hands on changed to the sink behind it.
class DecodeStep : public TokenSink {
 public:
  TokenSink* behind = nullptr;
  void finish() override { behind->finish(); }
};

// Makes a fresh step for one text to decode.
using DecodeStepMaker = std::function<std::unique_ptr<DecodeStep>()>;

// The steps of the JSON object `spec`, in order; for null the one that puts a space between tokens.
// Error names a type that is not supported.
std::vector<DecodeStepMaker> make_decoder(const nlohmann::json* spec, const std::string& where);

}  // namespace krait
