// UTF-8, character classes of the Unicode version that the `tokenizers` library uses, and the byte-level
// alphabet of GPT-2.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace krait::unicode {

// How the bytes at a place begin: a whole character; `length` bytes that no continuation can make valid
// (the "maximal subpart" of the Unicode standard, section 3.9, which one U+FFFD stands for); or the
// beginning of a character that the end of the text cuts.
enum class Form { valid, invalid, cut };
struct Step {
  Form form;
  size_t length;
};
Step next_step(const char* p, const char* end);

// The text itself, or a copy with U+FFFD for each malformed part, kept in `storage`.
std::string_view lossy(std::string_view bytes, std::string& storage);

// The code point at `p` in valid UTF-8; moves `p` behind it.
char32_t take(const char*& p);
void append(std::string& out, char32_t c);
// Bytes of the character that begins with `lead`.
inline size_t length_of(unsigned char lead) {
  return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

// The general category of Unicode 16, as "Lu".
const char* category(char32_t c);
bool is_space(char32_t c);    // White_Space
bool is_numeric(char32_t c);  // N
bool is_word(char32_t c);     // \w of the library's word borders
bool is_punctuation(
    char32_t c);                // the library's Punctuation: ASCII punctuation, and P of Unicode 9
char32_t to_lower(char32_t c);  // one to one; U+0130 is the caller's

// What Unicode 15 to 16 added to PCRE2's Unicode 14: ranges of one general category, in order.
struct CategoryRange {
  char32_t first, last;
  char category[3];
};
extern const CategoryRange kSinceUnicode14[];
extern const size_t kSinceUnicode14Count;

// Characters whose decomposition or combining class is younger than the library's normalization tables
// (Unicode 9): to it they are plain letters, and nothing composes across them.
bool is_inert(char32_t c);

// Each byte's character in the byte-level alphabet, as UTF-8: printable Latin-1 stands for itself, the
// rest for U+0100 and on.
std::string_view byte_char(unsigned char byte);
// The byte of a character, -1 where it is not of that alphabet.
int char_byte(char32_t c);

}  // namespace krait::unicode
