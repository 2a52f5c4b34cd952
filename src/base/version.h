// What this build is.
#pragma once
#include <string_view>

namespace krait {

std::string_view version();  // "0.1.0"
std::string_view commit();   // of the sources, 12 digits, or "unknown" outside a git checkout

}  // namespace krait
