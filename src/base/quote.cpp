#include "krait/base/quote.h"

#include "krait/base/error.h"

namespace krait {

std::string quote(std::string_view text) {
  constexpr size_t kMost = 100;
  std::string out = "\"";
  for (const char c : text.substr(0, kMost)) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c >= 0x20 && c < 0x7f) {
      out += c;
    } else {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
  }
  return out + (text.size() > kMost ? "...\"" : "\"");
}

}  // namespace krait
