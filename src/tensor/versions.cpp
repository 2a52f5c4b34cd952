#include "krait/tensor/versions.h"

#include "krait/tensor/cuda/runtime.h"

namespace krait {

std::string cuda_versions() { return cuda::versions(); }

}  // namespace krait
