// config.json of the two published layouts, read and written.
#pragma once
#include <string>

#include "krait/models/config.h"

namespace krait {

using models::Layout;

// A model's config from the text of a config.json; `layout` says which of the two it was (told apart by
// "model_type"). `where` names the file in messages. Error names the key, what was expected and what came.
models::Config parse_config(const std::string& json_text, const std::string& where, Layout& layout);

// The text of a config.json in a layout. `dtype` is what the weights beside it are stored in.
std::string config_json(const models::Config& config, Layout layout, DType dtype);

}  // namespace krait
