#include "krait/models/rotary_keys.h"

#include <cmath>

namespace krait::models {

static void read(const JsonView& j, RotaryKeys& keys) {
  keys.base = j.number("rope_theta", j.number("rotary_emb_base", keys.base));
  keys.fraction = j.number("partial_rotary_factor", j.number("rotary_pct", keys.fraction));
  if (!(keys.base > 0)) j.wrong("rope_theta", "a positive number");
  if (!(keys.fraction >= 0 && keys.fraction <= 1))
    j.wrong("partial_rotary_factor", "a number from 0 to 1");
}

static void refuse_scaling(const JsonView& j, const char* key) {
  if (j.text(key, "default") != "default") j.wrong(key, "\"default\": angles that are not scaled");
}

RotaryKeys rotary_keys(const JsonView& j, const RotaryKeys& usual) {
  RotaryKeys keys = usual;
  read(j, keys);
  if (j.has("rope_scaling")) {
    const JsonView scaling = j.object("rope_scaling");
    refuse_scaling(scaling, scaling.has("rope_type") ? "rope_type" : "type");
  }
  if (j.has("rope_parameters")) {
    const JsonView nested = j.object("rope_parameters");
    refuse_scaling(nested, "rope_type");
    read(nested, keys);
  }
  return keys;
}

ops::Rotation rotation_of(const RotaryKeys& keys, int64_t P) {
  ops::Rotation rotation;
  const auto n = static_cast<int64_t>(static_cast<double>(P) * keys.fraction);
  rotation.R = n + n % 2;
  rotation.base =
      n % 2 == 0 ? keys.base
                 : std::pow(keys.base, static_cast<double>(rotation.R) / static_cast<double>(n));
  return rotation;
}

}  // namespace krait::models
