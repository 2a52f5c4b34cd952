// Text to token ids and back: bytes, and Hugging Face tokenizer.json of the BPE kinds.
//
// tokenizer.json is read as the `tokenizers` library (0.23) reads it, so that ids and texts are equal:
//   model           BPE: merges as strings or pairs, byte_fallback, unk_token, fuse_unk, ignore_merges
//   normalizers     NFC NFD NFKC NFKD Prepend Replace Lowercase Strip Sequence
//   pre_tokenizers  ByteLevel Metaspace Split Digits Punctuation Whitespace WhitespaceSplit Sequence
//   post_processor  TemplateProcessing ByteLevel Sequence
//   decoders        ByteLevel Metaspace Replace ByteFallback Fuse Strip Sequence
//   added_tokens    all flags; ids are given in the order of the list, as the library gives them
// "truncation" and "padding" are not applied: text is never cut. Anything else is refused by name.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace krait {

// One text being decoded, id by id; see StreamDecoder.
class DecodeStream {
 public:
  virtual ~DecodeStream() = default;
  virtual void push(int32_t id, std::string& out) = 0;
  virtual void finish(std::string& out) = 0;
};

// Safe to use from several threads at once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  Tokenizer() = default;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Ids of a text. Each malformed part of UTF-8 is read as U+FFFD, as lossy decoding in Python or Rust
  // gives it (byte_tokenizer() takes every byte as it is). `add_special` adds what the post-processor's
  // template names, as <s>; special tokens written out in the text are recognised either way.
  virtual std::vector<int32_t> encode(std::string_view text, bool add_special) const = 0;

  // Text of ids. Ids that name no token give nothing. `skip_special` leaves special tokens out. UTF-8
  // except from byte_tokenizer(), which gives the bytes.
  std::string decode(std::span<const int32_t> ids, bool skip_special = false) const;

  // One more than the largest id, added tokens included.
  virtual int64_t vocab_size() const = 0;
  virtual std::optional<int32_t> token_id(std::string_view token) const = 0;
  // A token as the file spells it (byte-level tokens: "Ġthe").
  virtual std::optional<std::string> token(int32_t id) const = 0;
  // The end of a document, where a special token has one of its usual names ("</s>", "<|endoftext|>").
  virtual std::optional<int32_t> eos_id() const = 0;

  // The tokenizer must outlive the stream.
  virtual std::unique_ptr<DecodeStream> decode_stream(bool skip_special) const = 0;
};

// Decoding while ids arrive: the pushes and finish() give together what decode() of all ids gives, and
// every piece is whole characters. What a later id may still change is held back.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = false)
      : stream_(tokenizer.decode_stream(skip_special)) {}
  std::string push(int32_t id) {
    std::string out;
    stream_->push(id, out);
    return out;
  }
  // What was held back. The decoder is spent after it.
  std::string finish() {
    std::string out;
    stream_->finish(out);
    return out;
  }

 private:
  std::unique_ptr<DecodeStream> stream_;
};

// id = byte value, 256 ids.
std::unique_ptr<Tokenizer> byte_tokenizer();

// Throws Error for a file that is malformed or asks for what is not supported.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& tokenizer_json);
// The same from the file's text; `where` names it in messages.
std::unique_ptr<Tokenizer> parse_tokenizer(std::string_view json, const std::string& where);

}  // namespace krait
