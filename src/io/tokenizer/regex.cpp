#include "krait/io/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "krait/base/error.h"
#include "krait/io/tokenizer/unicode.h"

namespace krait {

struct Regex::Code {
  pcre2_code* code = nullptr;
  pcre2_match_context* context = nullptr;
  bool jit = false;
  std::string shown;
  ~Code() {
    pcre2_match_context_free(context);
    pcre2_code_free(code);
  }
};

Regex::Regex(std::string_view pattern, unsigned options, std::string_view shown) {
  auto built = std::make_shared<Code>();
  built->shown = shown.substr(0, 200);
  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  require(context != nullptr, "[tokenizer] out of memory for a regular expression");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  built->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), options,
                              &error, &offset, context.get());
  if (built->code == nullptr) {
    char message[160] = "";
    pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(message), sizeof message);
    fail("[tokenizer] regular expression \"{}\": {}", built->shown, message);
  }
  built->jit = pcre2_jit_compile(built->code, PCRE2_JIT_COMPLETE) == 0;
  built->context = pcre2_match_context_create(nullptr);
  require(built->context != nullptr, "[tokenizer] out of memory for a regular expression");
  pcre2_set_match_limit(built->context, 2'000'000);  // below a second; hostile patterns end there
  code_ = std::move(built);
}

Regex Regex::oniguruma(std::string_view pattern) {
  // In Ruby's syntax ^ and $ stand at the lines' ends.
  return Regex(translate_oniguruma(pattern),
               PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, pattern);
}

Regex Regex::literal(std::string_view text) { return Regex(text, PCRE2_UTF | PCRE2_LITERAL, text); }

Regex::Search::Search(const Regex& regex, std::string_view text)
    : code_(*regex.code_), text_(text), data_(pcre2_match_data_create(1, nullptr)) {
  require(data_ != nullptr, "[tokenizer] out of memory for a regular expression");
}

Regex::Search::~Search() { pcre2_match_data_free(static_cast<pcre2_match_data*>(data_)); }

bool Regex::Search::find(size_t from, MatchSpan& span) {
  auto* data = static_cast<pcre2_match_data*>(data_);
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text_.data());
  int found = code_.jit
                  ? pcre2_jit_match(code_.code, subject, text_.size(), from, 0, data, code_.context)
                  : PCRE2_ERROR_JIT_STACKLIMIT;
  if (found == PCRE2_ERROR_JIT_STACKLIMIT)  // the interpreter keeps its stack on the heap
    found = pcre2_match(code_.code, subject, text_.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                        data, code_.context);
  if (found == PCRE2_ERROR_NOMATCH) return false;
  require(found >= 0,
          "[tokenizer] regular expression \"{}\": gave up at byte {} of a text of {} bytes (PCRE2 "
          "error {})",
          code_.shown, from, text_.size(), found);
  const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data);
  // \K in a lookaround could end a match before its begin; the translation refuses \K.
  span = {ends[0], ends[1]};
  return true;
}

bool Regex::Search::next(MatchSpan& span) {
  while (from_ <= text_.size()) {
    if (!find(from_, span)) {
      from_ = text_.size() + 1;
      return false;
    }
    const bool empty = span.begin == span.end;
    if (empty && span.end == last_end_) {  // look again one character on
      from_ = span.end + (span.end < text_.size()
                              ? unicode::length_of(static_cast<unsigned char>(text_[span.end]))
                              : 1);
      continue;
    }
    from_ = last_end_ = span.end;
    return true;
  }
  return false;
}

}  // namespace krait
