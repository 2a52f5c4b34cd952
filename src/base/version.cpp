#include "krait/base/version.h"

namespace krait {

std::string_view version() { return KRAIT_VERSION; }
std::string_view commit() { return KRAIT_COMMIT; }

}  // namespace krait
