// Text that came from a file, made fit for a message.
#pragma once
#include <string>
#include <string_view>

namespace krait {

// `text` in quotes: control characters and bytes outside ASCII as \xNN, cut after 100 characters.
std::string quote(std::string_view text);

}  // namespace krait
