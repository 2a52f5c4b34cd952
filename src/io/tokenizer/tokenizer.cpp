#include "krait/io/tokenizer/tokenizer.h"

#include <mutex>

#include "krait/base/error.h"
#include "krait/base/file.h"
#include "krait/io/tokenizer/added_tokens.h"
#include "krait/io/tokenizer/bpe.h"
#include "krait/io/tokenizer/decoder.h"
#include "krait/io/tokenizer/normalizer.h"
#include "krait/io/tokenizer/pre_tokenizer.h"
#include "krait/io/tokenizer/template.h"
#include "krait/io/tokenizer/tokenizer_json.h"
#include "krait/io/tokenizer/unicode.h"

namespace krait {
namespace {

using nlohmann::json;

// Names that the published language models give the token at the end of a document.
constexpr const char* kEosNames[] = {"</s>",       "<|endoftext|>", "<|end_of_text|>",
                                     "<|im_end|>", "<eos>",         "<|eot_id|>"};

Bpe make_model(TokenizerJson& file, const std::string& where) {
  const json* spec = find_member(file.rest, "model");
  require(spec != nullptr && spec->is_object(), "{}: \"model\" is missing", where);
  const std::string at = where + ": model";
  const std::string type =
      find_member(*spec, "type") != nullptr ? string_member(*spec, "type", at) : "BPE";
  require(type == "BPE", "{}: the type \"{}\" is not supported, only BPE is", at, type);
  require(file.has_vocab && file.has_merges, "{}: \"vocab\" and \"merges\" are needed", at);
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    require(find_member(*spec, key) == nullptr || string_member(*spec, key, at).empty(),
            "{}: {} is not supported", at, key);
  const json* dropout = find_member(*spec, "dropout");
  require(dropout == nullptr || (dropout->is_number() && dropout->get<double>() == 0),
          "{}: dropout is not supported", at);
  BpeOptions options;
  if (find_member(*spec, "unk_token") != nullptr)
    options.unk_token = string_member(*spec, "unk_token", at);
  options.fuse_unk = bool_member(*spec, "fuse_unk", false, at);
  options.byte_fallback = bool_member(*spec, "byte_fallback", false, at);
  options.ignore_merges = bool_member(*spec, "ignore_merges", false, at);
  return Bpe(file, std::move(options), at);
}

template <class Make>
auto make_part(const json& root, const char* key, const std::string& where, Make make)
    -> decltype(make(root, where)) {
  const json* spec = find_member(root, key);
  return spec == nullptr ? nullptr : make(*spec, where + ": " + key);
}

class HfTokenizer : public Tokenizer {
 public:
  HfTokenizer(TokenizerJson file, const std::string& where)
      : model_(make_model(file, where)),
        normalizer_(make_part(file.rest, "normalizer", where, make_normalizer)),
        pre_tokenizer_(make_part(file.rest, "pre_tokenizer", where, make_pre_tokenizer)),
        added_(find_member(file.rest, "added_tokens"), model_, normalizer_.get(), where),
        template_(find_member(file.rest, "post_processor"), where + ": post_processor"),
        decoder_(make_decoder(find_member(file.rest, "decoder"), where + ": decoder")),
        tokens_(model_.size()) {
    const auto& vocab = model_.vocab();
    for (size_t i = 0; i < vocab.size(); ++i) {
      // Of a token that stands twice only the last id counts.
      if (model_.id_of(vocab[i].first) == vocab[i].second)
        tokens_.set(static_cast<uint64_t>(vocab[i].second), i);
      vocab_size_ = std::max<int64_t>(vocab_size_, int64_t{vocab[i].second} + 1);
    }
    for (const AddedToken& token : added_.all())
      vocab_size_ = std::max<int64_t>(vocab_size_, int64_t{token.id} + 1);
    for (const char* name : kEosNames)
      if (!eos_id_ && added_.is_special(name)) eos_id_ = added_.id_of(name);
  }

  std::vector<int32_t> encode(std::string_view text, bool add_special) const override {
    // The words of one thread are remembered from call to call; others that come meanwhile start anew.
    std::unique_lock lock(scratch_mutex_, std::try_to_lock);
    std::optional<Bpe::Scratch> own;
    Bpe::Scratch& scratch = lock.owns_lock() ? scratch_ : own.emplace();

    std::string storage;
    Pieces pieces = normalize(unicode::lossy(text, storage));
    if (pre_tokenizer_) pre_tokenizer_->apply(pieces);
    std::vector<int32_t> ids;
    ids.reserve(pieces.text.size() / 4 + 8);
    for (const Piece& piece : pieces.list) {
      if (piece.id >= 0)
        ids.push_back(piece.id);
      else
        model_.encode(pieces.of(piece), scratch, ids);
    }
    return template_.apply(std::move(ids), add_special);
  }

  int64_t vocab_size() const override { return vocab_size_; }
  std::optional<int32_t> eos_id() const override { return eos_id_; }

  std::optional<int32_t> token_id(std::string_view token) const override {
    if (const auto id = added_.id_of(token)) return id;
    const int32_t id = model_.id_of(token);
    return id < 0 ? std::nullopt : std::optional(id);
  }

  std::optional<std::string> token(int32_t id) const override {
    const std::string* text = text_of(id);
    return text == nullptr ? std::nullopt : std::optional(*text);
  }

  std::unique_ptr<DecodeStream> decode_stream(bool skip_special) const override;

  // A token's text for decoding: an added token's as the normalizer leaves it. Null where there is none.
  const std::string* text_of(int32_t id) const {
    if (const AddedToken* added = added_.by_id(id)) return &added->shown;
    if (id < 0) return nullptr;
    const uint64_t at = tokens_.get(static_cast<uint64_t>(id));
    return at == FlatMap::kNone ? nullptr : &model_.vocab()[at].first;
  }
  bool is_special(const std::string& text) const { return added_.is_special(text); }

 private:
  // Cuts out the added tokens: those matched in the text as it is, then, in what lies between after
  // normalizing it, the others.
  Pieces normalize(std::string_view text) const {
    Pieces pieces;
    pieces.text.reserve(text.size() + 16);
    for (const AddedTokens::Part& part : added_.find(text, false)) {
      const std::string_view raw = text.substr(part.begin, part.end - part.begin);
      if (part.id >= 0) {
        put(pieces, raw, part.id);
        continue;
      }
      Normalized normalized{std::string(raw), 0};
      if (part.begin == 0)
        normalized.origin_end = unicode::length_of(static_cast<unsigned char>(raw[0]));
      if (normalizer_) normalizer_->apply(normalized);
      if (part.begin == 0) pieces.origin_end = normalized.origin_end;
      const std::string_view clean = normalized.text;
      for (const AddedTokens::Part& inner : added_.find(clean, true))
        put(pieces, clean.substr(inner.begin, inner.end - inner.begin), inner.id);
    }
    return pieces;
  }

  static void put(Pieces& pieces, std::string_view text, int32_t id) {
    const size_t begin = pieces.text.size();
    pieces.text += text;
    pieces.list.push_back({begin, pieces.text.size(), id});
  }

  Bpe model_;
  std::unique_ptr<Normalizer> normalizer_;
  std::unique_ptr<PreTokenizer> pre_tokenizer_;
  AddedTokens added_;
  Template template_;
  std::vector<DecodeStepMaker> decoder_;
  FlatMap tokens_;  // id -> position in the model's vocab
  int64_t vocab_size_ = 0;
  std::optional<int32_t> eos_id_;
  mutable std::mutex scratch_mutex_;
  mutable Bpe::Scratch scratch_;
};

// The end of a chain of decode steps: takes what comes out.
class TextSink : public TokenSink {
 public:
  void part(std::string_view text, bool, bool) override { text_ += text; }
  void finish() override {}
  void take(std::string& out) {
    out += text_;
    text_.clear();
  }

 private:
  std::string text_;
};

class HfDecodeStream : public DecodeStream {
 public:
  HfDecodeStream(const HfTokenizer& tokenizer, const std::vector<DecodeStepMaker>& makers,
                 bool skip_special)
      : tokenizer_(tokenizer), skip_special_(skip_special) {
    for (const DecodeStepMaker& make : makers) steps_.push_back(make());
    TokenSink* behind = &end_;
    for (auto step = steps_.rbegin(); step != steps_.rend(); ++step) {
      (*step)->behind = behind;
      behind = step->get();
    }
    front_ = behind;
  }

  void push(int32_t id, std::string& out) override {
    const std::string* text = tokenizer_.text_of(id);
    if (text == nullptr || (skip_special_ && tokenizer_.is_special(*text))) return;
    front_->part(*text, true, true);
    end_.take(out);
  }

  void finish(std::string& out) override {
    front_->finish();
    end_.take(out);
  }

 private:
  const HfTokenizer& tokenizer_;
  bool skip_special_;
  std::vector<std::unique_ptr<DecodeStep>> steps_;
  TextSink end_;
  TokenSink* front_;
};

std::unique_ptr<DecodeStream> HfTokenizer::decode_stream(bool skip_special) const {
  return std::make_unique<HfDecodeStream>(*this, decoder_, skip_special);
}

}  // namespace

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  const std::unique_ptr<DecodeStream> stream = decode_stream(skip_special);
  std::string out;
  for (const int32_t id : ids) stream->push(id, out);
  stream->finish(out);
  return out;
}

std::unique_ptr<Tokenizer> parse_tokenizer(std::string_view text, const std::string& where) {
  return std::make_unique<HfTokenizer>(read_tokenizer_json(text, where), where);
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& tokenizer_json) {
  return parse_tokenizer(read_file(tokenizer_json), tokenizer_json.string());
}

}  // namespace krait
