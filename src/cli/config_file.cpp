#include "krait/cli/config_file.h"

#define TOML_EXCEPTIONS 1
#include <toml++/toml.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>

#include "krait/base/error.h"
#include "krait/base/file.h"

namespace krait::cli {

namespace {

// The value of the last `name`, or "".
std::string value_of(const std::string& name, const std::vector<std::string>& args) {
  std::string value;
  for (size_t i = 0; i < args.size() && args[i] != "--"; ++i) {
    if (args[i] == name && i + 1 < args.size()) value = args[i + 1];
    if (args[i].starts_with(name + "=")) value = args[i].substr(name.size() + 1);
  }
  return value;
}

bool is_typed(const CLI::Option& option, const std::vector<std::string>& args) {
  for (const std::string& name : option.get_lnames())
    for (const std::string& arg : args)
      if (arg == "--" + name || arg.starts_with("--" + name + "=")) return true;
  return false;
}

std::string scalar_text(const toml::node& node, const std::string& where) {
  if (const auto* s = node.as_string()) return s->get();
  if (const auto* i = node.as_integer()) return std::to_string(i->get());
  if (const auto* f = node.as_floating_point()) return fmt::format("{}", f->get());
  if (const auto* b = node.as_boolean()) return b->get() ? "true" : "false";
  fail("{}: expected a string, a number, true or false, or an array of them", where);
}

}  // namespace

void add_config_text(const CLI::App& app, std::string_view text, const std::string& path,
                     std::vector<std::string>& args) {
  toml::table table;
  try {
    table = toml::parse(text, path);
  } catch (const toml::parse_error& e) {
    fail("{}: line {}, column {}: {}", path, e.source().begin.line, e.source().begin.column,
         e.description());
  }

  std::vector<std::string> words;
  for (const auto& [key, node] : table) {
    const std::string name(key.str()), where = fmt::format("{}: \"{}\"", path, name);
    const CLI::Option* option = app.get_option_no_throw("--" + name);
    require(option && name != "config" && name != "help", "{}: `krait {}` has no such option",
            where, app.get_name());
    if (is_typed(*option, args)) continue;
    std::vector<std::string> values;
    if (const toml::array* list = node.as_array()) {
      for (const toml::node& item : *list) values.push_back(scalar_text(item, where));
    } else {
      values.push_back(scalar_text(node, where));
    }
    if (option->get_expected_max() == 0) {  // a flag
      require(values.size() == 1 && node.is_boolean(), "{}: expected true or false", where);
      if (values[0] == "true") words.push_back("--" + name);
    } else if (option->get_expected_max() > 1) {
      for (const std::string& v : values) words.push_back("--" + name + "=" + v);
    } else {
      words.push_back(fmt::format("--{}={}", name, fmt::join(values, ",")));
    }
  }
  args.insert(std::find(args.begin(), args.end(), "--"), words.begin(), words.end());
}

void add_config_file(const CLI::App& app, std::vector<std::string>& args) {
  const std::string config = value_of("--config", args);
  if (!config.empty()) add_config_text(app, read_file(config), config, args);
  if (!app.get_option_no_throw("--resume")) return;
  const std::string run = value_of("--resume", args);
  if (run.empty()) return;
  const std::string kept = (std::filesystem::path(run) / "config.toml").string();
  add_config_text(app, read_file(kept), kept, args);
}

}  // namespace krait::cli
