// --config FILE.toml: any option of the command as a key. What the file says is put behind the words of
// the command line as if typed there, except for options that were typed and those that these exclude: the command
// line wins. A command with an option --resume RUN reads RUN/config.toml the same way, after the one that --config
// names.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace CLI {
class App;
}

namespace krait::cli {

// `args` are the words after the command's name. Without such a file named among them nothing is added. Error: the
// file cannot be read, is not TOML, or has a key that is no option of `app` or a value of a wrong kind.
void add_config_file(const CLI::App& app, std::vector<std::string>& args);

// The same for the text of one file, named `path` in messages.
void add_config_text(const CLI::App& app, std::string_view text, const std::string& path,
                     std::vector<std::string>& args);

}  // namespace krait::cli
