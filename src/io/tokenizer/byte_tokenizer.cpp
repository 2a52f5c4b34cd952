#include "krait/io/tokenizer/tokenizer.h"
#include "krait/io/tokenizer/unicode.h"

namespace krait {
namespace {

// Gives the bytes as they are; a character that is not there in full is held.
class ByteStream : public DecodeStream {
 public:
  void push(int32_t id, std::string& out) override {
    if (id < 0 || id > 255) return;
    held_ += static_cast<char>(id);
    if (unicode::next_step(held_.data(), held_.data() + held_.size()).form == unicode::Form::cut)
      return;
    finish(out);
  }
  void finish(std::string& out) override {
    out += held_;
    held_.clear();
  }

 private:
  std::string held_;
};

class ByteTokenizer : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text, bool) const override {
    const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
    return std::vector<int32_t>(bytes, bytes + text.size());
  }
  int64_t vocab_size() const override { return 256; }
  std::optional<int32_t> token_id(std::string_view token) const override {
    if (token.size() != 1) return std::nullopt;
    return static_cast<unsigned char>(token[0]);
  }
  std::optional<std::string> token(int32_t id) const override {
    if (id < 0 || id > 255) return std::nullopt;
    return std::string(1, static_cast<char>(id));
  }
  std::optional<int32_t> eos_id() const override { return std::nullopt; }
  std::unique_ptr<DecodeStream> decode_stream(bool) const override {
    return std::make_unique<ByteStream>();
  }
};

}  // namespace

std::unique_ptr<Tokenizer> byte_tokenizer() { return std::make_unique<ByteTokenizer>(); }

}  // namespace krait
