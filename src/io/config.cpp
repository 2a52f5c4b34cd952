#include "krait/io/config.h"

#include "krait/base/json.h"
#include "krait/models/architecture.h"

namespace krait {

// Says what no architecture claims.
[[noreturn]] static void refuse(const JsonView& j, Layout layout) {
  std::string known;
  for (const models::Architecture* a : models::architectures())
    known += fmt::format("{}\"{}\"", known.empty() ? "" : ", ", a->name);
  if (layout == Layout::huggingface)
    j.wrong("model_type", "an architecture that Krait knows: " + known);
  const std::string expected = "layers that Krait knows, of one of " + known;
  if (j.has("ssm_cfg")) j.object("ssm_cfg").wrong("layer", expected);
  j.wrong("attn_layer_idx", expected);
}

models::Config parse_config(const std::string& json_text, const std::string& where,
                            Layout& layout) {
  const Json json = parse_json(json_text, where);
  const JsonView j(json, where);
  layout = j.has("model_type") ? Layout::huggingface : Layout::original;
  for (const models::Architecture* a : models::architectures()) {
    if (!a->claims(j, layout)) continue;
    models::Config c = a->read(j, layout);
    c.layout = layout;
    try {
      check(c);
    } catch (const Error& e) {
      fail("{}: {}", where, e.what());
    }
    return c;
  }
  refuse(j, layout);
}

std::string config_json(const models::Config& config, Layout layout, DType dtype) {
  OrderedJson j = config.body->json(config, layout);
  if (layout == Layout::huggingface) j["torch_dtype"] = name_of(dtype);
  return j.dump(2) + "\n";
}

}  // namespace krait
