#include "krait/io/tokenizer/decoder.h"

#include <algorithm>

#include "krait/base/error.h"
#include "krait/io/tokenizer/regex.h"
#include "krait/io/tokenizer/tokenizer_json.h"
#include "krait/io/tokenizer/unicode.h"

namespace krait {
namespace {

using nlohmann::json;

// A step that needs each token whole.
class WholeTokenStep : public DecodeStep {
 public:
  void part(std::string_view text, bool begin, bool end) final {
    if (begin && end) return token(text);  // the usual case, without a copy
    if (begin) held_.clear();
    held_ += text;
    if (end) token(held_);
  }

 protected:
  virtual void token(std::string_view text) = 0;
  void emit(std::string_view text) { behind->part(text, true, true); }

 private:
  std::string held_;
};

// A step whose output is a single token, whatever comes in.
class JoiningStep : public WholeTokenStep {
 public:
  void finish() override {
    behind->part({}, !begun_, true);
    DecodeStep::finish();
  }

 protected:
  void join(std::string_view text) {
    if (text.empty()) return;
    behind->part(text, !begun_, false);
    begun_ = true;
  }

 private:
  bool begun_ = false;
};

class FuseStep : public JoiningStep {
 protected:
  void token(std::string_view text) override { join(text); }
};

// The bytes that characters of the byte-level alphabet stand for; a token with any other character
// stands for its own bytes. Malformed UTF-8 becomes U+FFFD.
class ByteLevelStep : public JoiningStep {
 public:
  void finish() override {
    std::string storage;
    join(unicode::lossy(bytes_, storage));
    JoiningStep::finish();
  }

 protected:
  void token(std::string_view text) override {
    const size_t before = bytes_.size();
    const char* const end = text.data() + text.size();
    for (const char* p = text.data(); p != end;) {
      const int byte = unicode::char_byte(unicode::take(p));
      if (byte < 0) {
        bytes_.resize(before);
        bytes_ += text;
        break;
      }
      bytes_ += static_cast<char>(byte);
    }
    // All but a character that the end cuts can go.
    size_t cut = bytes_.size();
    for (size_t back = 1; back <= std::min<size_t>(3, bytes_.size()); ++back) {
      const char* const at = bytes_.data() + bytes_.size() - back;
      if ((*at & 0xC0) == 0x80) continue;
      if (unicode::next_step(at, bytes_.data() + bytes_.size()).form == unicode::Form::cut)
        cut -= back;
      break;
    }
    std::string storage;
    join(unicode::lossy(std::string_view(bytes_).substr(0, cut), storage));
    bytes_.erase(0, cut);
  }

 private:
  std::string bytes_;
};

// Tokens "<0xNN>" in a row are bytes: their text if they are UTF-8 as a whole, else U+FFFD for each.
// A row is held until it ends.
class ByteFallbackStep : public WholeTokenStep {
 public:
  void finish() override {
    flush();
    DecodeStep::finish();
  }

 protected:
  void token(std::string_view text) override {
    if (const int byte = byte_of(text); byte >= 0) {
      bytes_ += static_cast<char>(byte);
      return;
    }
    flush();
    emit(text);
  }

 private:
  static int byte_of(std::string_view text) {
    if (text.size() != 6 || !text.starts_with("<0x") || !text.ends_with('>')) return -1;
    int value = 0;
    for (const char c : text.substr(3, 2)) {
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) return -1;
      value = value * 16 + digit;
    }
    return value;
  }

  void flush() {
    if (bytes_.empty()) return;
    std::string storage;
    if (unicode::lossy(bytes_, storage).data() == bytes_.data())
      emit(bytes_);
    else
      for (size_t i = 0; i < bytes_.size(); ++i) emit("\xEF\xBF\xBD");
    bytes_.clear();
  }

  std::string bytes_;
};

// The replacement becomes a space; in the very first token it goes, if one was put there.
class MetaspaceStep : public WholeTokenStep {
 public:
  MetaspaceStep(char32_t replacement, bool prepended)
      : replacement_(replacement), drop_(prepended) {}

 protected:
  void token(std::string_view text) override {
    std::string out;
    const char* const end = text.data() + text.size();
    for (const char* p = text.data(); p != end;) {
      const char32_t c = unicode::take(p);
      if (c != replacement_)
        unicode::append(out, c);
      else if (!drop_)
        out += ' ';
    }
    drop_ = false;
    emit(out);
  }

 private:
  char32_t replacement_;
  bool drop_;
};

class ReplaceStep : public WholeTokenStep {
 public:
  ReplaceStep(Regex pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}

 protected:
  void token(std::string_view text) override {
    std::string out;
    size_t done = 0;
    pattern_.each_match(text, [&](MatchSpan match) {
      out.append(text, done, match.begin - done);
      out += content_;
      done = match.end;
    });
    out.append(text, done);
    emit(out);
  }

 private:
  Regex pattern_;
  std::string content_;
};

// Takes up to `start` and `stop` times the character `content` off the ends of each token.
class StripStep : public DecodeStep {
 public:
  StripStep(char32_t content, uint64_t start, uint64_t stop) : start_(start), stop_(stop) {
    unicode::append(content_, content);
  }

  void part(std::string_view text, bool begin, bool end) override {
    if (begin) {
      left_ = start_;
      tail_ = 0;
    }
    while (left_ > 0 && !text.empty()) {
      if (!text.starts_with(content_)) {
        left_ = 0;
      } else {
        text.remove_prefix(content_.size());
        --left_;
      }
    }
    // Copies of `content` at the end of what came so far are held: they may be the token's last.
    std::string out;
    size_t copies = 0;
    std::string_view body = text;
    while (stop_ > 0 && body.ends_with(content_)) {
      body.remove_suffix(content_.size());
      ++copies;
    }
    if (!body.empty()) {
      put(out, tail_);
      out += body;
      tail_ = 0;
    }
    tail_ += copies;
    if (end) put(out, tail_ - std::min<uint64_t>(tail_, stop_));
    behind->part(out, begin, end);
  }

 private:
  void put(std::string& out, uint64_t copies) const {
    for (; copies > 0; --copies) out += content_;
  }

  std::string content_;
  uint64_t start_, stop_;
  uint64_t left_ = 0;  // how many may still be taken off the front
  uint64_t tail_ = 0;  // copies held
};

class SpacesBetweenStep : public WholeTokenStep {
 protected:
  void token(std::string_view text) override {
    if (!first_) emit(" ");
    first_ = false;
    emit(text);
  }

 private:
  bool first_ = true;
};

uint64_t count_member(const json& spec, const char* key, const std::string& where) {
  const json* value = find_member(spec, key);
  require(value != nullptr && value->is_number_unsigned(), "{}: {}: expected a count", where, key);
  return value->get<uint64_t>();
}

void add_steps(const json& spec, const std::string& where, std::vector<DecodeStepMaker>& out) {
  const std::string type = string_member(spec, "type", where);
  if (type == "ByteLevel") {
    out.push_back([] { return std::make_unique<ByteLevelStep>(); });
  } else if (type == "Fuse") {
    out.push_back([] { return std::make_unique<FuseStep>(); });
  } else if (type == "ByteFallback") {
    out.push_back([] { return std::make_unique<ByteFallbackStep>(); });
  } else if (type == "Metaspace") {
    const char32_t replacement = char_member(spec, "replacement", where);
    const bool prefix = bool_member(spec, "add_prefix_space", true, where);
    const bool prepended = find_member(spec, "prepend_scheme") != nullptr
                               ? string_member(spec, "prepend_scheme", where) != "never"
                               : prefix;
    out.push_back([=] { return std::make_unique<MetaspaceStep>(replacement, prepended); });
  } else if (type == "Replace") {
    const Regex pattern = pattern_member(spec, where);
    const std::string content = string_member(spec, "content", where);
    out.push_back([=] { return std::make_unique<ReplaceStep>(pattern, content); });
  } else if (type == "Strip") {
    const char32_t content = char_member(spec, "content", where);
    const uint64_t start = count_member(spec, "start", where);
    const uint64_t stop = count_member(spec, "stop", where);
    out.push_back([=] { return std::make_unique<StripStep>(content, start, stop); });
  } else if (type == "Sequence") {
    for (const json& step : array_member(spec, "decoders", where)) add_steps(step, where, out);
  } else {
    fail("{}: the type \"{}\" is not supported", where, type);
  }
}

}  // namespace

std::vector<DecodeStepMaker> make_decoder(const json* spec, const std::string& where) {
  std::vector<DecodeStepMaker> steps;
  if (spec == nullptr)
    steps.push_back([] { return std::make_unique<SpacesBetweenStep>(); });
  else
    add_steps(*spec, where, steps);
  return steps;
}

}  // namespace krait
