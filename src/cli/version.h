// The text of --version.
#pragma once
#include <string>

namespace krait::cli {

// What `krait --version` prints: version, commit, devices and instruction sets compiled in, libraries.
std::string version_text();

}  // namespace krait::cli
