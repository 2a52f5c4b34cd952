#include "krait/train/finite.h"

#include <algorithm>
#include <cmath>

#include "krait/tensor/device.h"

namespace krait {

static bool finite(const Tensor& on_device) {
  std::vector<std::byte> buffer;
  const Tensor t = on_host(on_device, buffer);
  const auto all = [&](const auto* p) {
    return std::all_of(p, p + t.numel(),
                       [](auto x) { return std::isfinite(static_cast<float>(x)); });
  };
  return t.dtype == DType::bf16 ? all(t.as<bf16>()) : all(t.as<float>());
}

// "layer 3, backbone.layers.3.mixer.D".
static std::string place(const std::string& name) {
  const std::string mark = "layers.";
  const size_t at = name.find(mark);
  if (at == std::string::npos) return "outside of the layers, " + name;
  const size_t from = at + mark.size();
  return fmt::format("layer {}, {}", name.substr(from, name.find('.', from) - from), name);
}

void require_finite(const nn::ParamSet& params, int64_t step) {
  for (const nn::Param& p : params)
    require(finite(p.value.detach()),
            "step {}: a weight is not finite: {}. The last checkpoint is kept; go on "
            "from it with a lower learning rate",
            step, place(p.name));
}

void fail_not_finite(const nn::ParamSet& params, int64_t step, double loss, double grad_norm) {
  require_finite(params, step);
  std::string origin = "no tensor by itself";
  for (const nn::Param& p : params)
    if (p.var.written && !finite(p.var.grad)) origin = place(p.name);
  fail(
      "step {}: loss {}, gradient norm {}: the gradient is not finite: {}. The last checkpoint is "
      "kept; go on from it with a lower learning rate",
      step, loss, grad_norm, origin);
}

}  // namespace krait
