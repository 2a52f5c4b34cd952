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

// `whole` is the config that `j`, a part of it, lies in.
static ops::RotaryScaling read_scaling(const JsonView& j, const JsonView& whole) {
  const char* const key = j.has("rope_type") ? "rope_type" : "type";
  const std::string type = j.text(key, "default");
  ops::RotaryScaling s;
  if (type == "default") return s;
  if (type != "linear" && type != "llama3") j.wrong(key, "\"default\", \"linear\" or \"llama3\"");
  s.factor = j.number("factor");
  if (!(s.factor >= 1)) j.wrong("factor", "a number of at least 1");
  if (type == "linear") return s;
  s.low = j.number("low_freq_factor");
  s.high = j.number("high_freq_factor");
  if (!(s.low > 0 && s.high > s.low)) j.wrong("high_freq_factor", "a number above low_freq_factor");
  const char* const original = "original_max_position_embeddings";
  s.original = j.has(original) ? j.number(original) : whole.number("max_position_embeddings");
  if (!(s.original > 0)) j.wrong(original, "a number above 0");
  return s;
}

RotaryKeys rotary_keys(const JsonView& j, const RotaryKeys& usual) {
  RotaryKeys keys = usual;
  read(j, keys);
  if (j.has("rope_scaling")) keys.scaling = read_scaling(j.object("rope_scaling"), j);
  if (j.has("rope_parameters")) {
    const JsonView nested = j.object("rope_parameters");
    keys.scaling = read_scaling(nested, j);
    read(nested, keys);
  }
  return keys;
}

static OrderedJson scaling_json(const ops::RotaryScaling& s) {
  OrderedJson o;
  const bool plain = s == ops::RotaryScaling();
  o["rope_type"] = plain ? "default" : s.high > 0 ? "llama3" : "linear";
  if (plain) return o;
  o["factor"] = s.factor;
  if (s.high > 0) {
    o["low_freq_factor"] = s.low;
    o["high_freq_factor"] = s.high;
    o["original_max_position_embeddings"] = static_cast<int64_t>(s.original);
  }
  return o;
}

void write_scaling(OrderedJson& j, const ops::RotaryScaling& s) {
  if (s != ops::RotaryScaling()) j["rope_scaling"] = scaling_json(s);
}

OrderedJson rotary_parameters(const RotaryKeys& keys) {
  OrderedJson o = scaling_json(keys.scaling);
  o["rope_theta"] = keys.base;
  o["partial_rotary_factor"] = keys.fraction;
  return o;
}

ops::Rotation rotation_of(const RotaryKeys& keys, int64_t P) {
  ops::Rotation rotation;
  const auto n = static_cast<int64_t>(static_cast<double>(P) * keys.fraction);
  rotation.R = n + n % 2;
  rotation.base =
      n % 2 == 0 ? keys.base
                 : std::pow(keys.base, static_cast<double>(rotation.R) / static_cast<double>(n));
  rotation.scaling = keys.scaling;
  return rotation;
}

}  // namespace krait::models
