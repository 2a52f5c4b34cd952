// The first byte chooses: the rest is a tokenizer.json, or a text for a tokenizer that has a bit of
// everything. Texts must decode alike at once and id by id.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "krait/base/error.h"
#include "krait/io/tokenizer/tokenizer.h"

namespace {

constexpr const char* kTiny =
    R"({"added_tokens":[{"content":"<s>","special":true,"normalized":false,"lstrip":true},)"
    R"({"content":"ab ","normalized":true,"rstrip":true},{"content":"the","single_word":true}],)"
    R"("normalizer":{"type":"Sequence","normalizers":[{"type":"NFKC"},{"type":"Lowercase"},)"
    R"({"type":"Replace","pattern":{"Regex":"q+"},"content":"ab"},)"
    R"({"type":"Strip","strip_left":true,"strip_right":false}]},)"
    R"("pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},)"
    R"({"type":"Punctuation","behavior":"MergedWithNext"},)"
    R"({"type":"Split","pattern":{"Regex":"\\s+(?!\\S)|\\p{Lu}+"},"behavior":"Contiguous",)"
    R"("invert":true},{"type":"Metaspace","replacement":"▁","prepend_scheme":"first","split":false}]},)"
    R"("decoder":{"type":"Sequence","decoders":[{"type":"ByteFallback"},)"
    R"({"type":"Metaspace","replacement":"▁"},{"type":"Fuse"},)"
    R"({"type":"Strip","content":" ","start":1,"stop":2}]},)"
    R"("model":{"type":"BPE","unk_token":"<unk>","byte_fallback":true,"vocab":{"<unk>":0,"a":1,"b":2,)"
    R"("ab":3,"▁":4,"▁ab":5,"<0xC3>":6,"<0xA9>":7,"<0x0A>":8,"abab":9},)"
    R"("merges":["a b","▁ ab","ab ab"]}})";

void use(const krait::Tokenizer& tokenizer, std::string_view text) {
  const std::vector<int32_t> ids = tokenizer.encode(text, true);
  const std::string whole = tokenizer.decode(ids);
  krait::StreamDecoder stream(tokenizer);
  std::string streamed;
  for (const int32_t id : ids) streamed += stream.push(id);
  streamed += stream.finish();
  if (streamed != whole) std::abort();
  for (const int32_t id : ids)
    if (id < 0) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    if (data[0] % 2 == 0) {
      static const auto tiny = krait::parse_tokenizer(kTiny, "tiny");
      use(*tiny, rest);
    } else {
      use(*krait::parse_tokenizer(rest, "fuzz"), "The ab\n 12 é<s>\xFF");
    }
  } catch (const krait::Error&) {
  }
  return 0;
}
