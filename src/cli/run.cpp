#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <limits>

#include "krait/base/log.h"
#include "krait/base/threads.h"
#include "krait/cli/command.h"
#include "krait/cli/config_file.h"
#include "krait/cli/near_miss.h"
#include "krait/cli/self_check.h"
#include "krait/cli/signals.h"
#include "krait/cli/version.h"

namespace krait::cli {

namespace {

std::string wrong_device(const std::string& device) {
  if (device == "auto" || device == "cpu" || device == "cuda") return "";
  if (device.starts_with("cuda:") && device.size() > 5 && device.size() < 9 &&
      device.find_first_not_of("0123456789", 5) == std::string::npos)
    return "";
  return fmt::format("expected auto, cpu, cuda or cuda:INDEX, got {}", device);
}

void add_common(CLI::App& app, Common& common) {
  const auto group = "Common options";
  app.add_option("--device", common.device,
                 "auto, cpu, cuda or cuda:INDEX; auto: CUDA if there, else CPU")
      ->check(CLI::Validator(wrong_device, "DEVICE"))
      ->group(group);
  app.add_option("--dtype", common.dtype, "float32 or bfloat16: type of weights and activations")
      ->check(CLI::IsMember({"float32", "bfloat16"}))
      ->group(group);
  app.add_option("--threads", common.threads, "threads of the CPU; default: all")
      ->check(CLI::Range(1, 1024))
      ->group(group);
  app.add_option("--seed", common.seed, "seed of every random choice; default 0")
      ->check(CLI::Range(uint64_t{0},
                         uint64_t{std::numeric_limits<int64_t>::max()}))  // what TOML can say
      ->group(group);
  app.add_flag("--quiet", common.quiet, "only warnings and errors on stderr")->group(group);
  app.add_flag("--json", common.json, "results as JSON, one object a line")->group(group);
  app.add_option("--config", common.config, "a TOML file with options of this command as keys")
      ->group(group);
}

int complain(int code, const std::string& message) {
  std::fflush(stdout);
  std::fprintf(stderr, "error: %s\n", message.c_str());
  return code;
}

bool is_option(const std::string& word) { return word.starts_with("-") && word.size() > 1; }

bool has_unknown_option(const CLI::App& app) {
  const std::vector<std::string> words = app.remaining(true);
  return std::any_of(words.begin(), words.end(), is_option);
}

// Of the words that the parser could do nothing with, the first option, or else the first.
Usage not_expected(const CLI::App& app, const std::string& command) {
  const std::vector<std::string> words = app.remaining(true);
  const auto option = std::find_if(words.begin(), words.end(), is_option);
  if (option == words.end())
    return Usage(
        fmt::format("{}: \"{}\" is not expected (see `{} --help`)", command, words[0], command));
  const std::string name = option->substr(0, option->find('='));
  const size_t dashes = name.find_first_not_of('-');
  const std::string hint =
      dashes == 2 ? did_you_mean(name.substr(dashes), option_names(app), "--") : "";
  return Usage(
      fmt::format("{} has no option {}{} (see `{} --help`)", command, name, hint, command));
}

// Of the words, each --name= of an option in two, since the parser would take the next word for its value.
std::vector<std::string> with_empty_values(const CLI::App& app, std::vector<std::string> words) {
  for (size_t i = 0; i < words.size() && words[i] != "--"; ++i) {
    if (!words[i].starts_with("--") || !words[i].ends_with("=")) continue;
    const std::string name = words[i].substr(0, words[i].size() - 1);
    if (name.find('=') != std::string::npos || !app.get_option_no_throw(name)) continue;
    words[i] = name;
    words.insert(words.begin() + static_cast<ptrdiff_t>(++i), "");
  }
  return words;
}

// A variable that a script forgot to set must not read as an option that was left out. Prompts may be empty.
void refuse_empty_values(const CLI::App& app) {
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_name().ends_with("prompt") || option->get_name() == "--prompt-tokens") continue;
    for (const std::string& value : option->results())
      if (value.empty())
        throw Usage(fmt::format("{}: expected a value, got an empty one", option->get_name()));
  }
}

// What took the words that a positional lacks, in words, or "".
std::string taken_by(const CLI::App& app) {
  for (const CLI::Option* option : app.get_options())
    if (!option->get_lnames().empty() && option->results().size() > 1)
      return fmt::format("; {} took every word up to the next option", option->get_name());
  return "";
}

// Parses and runs; every way to fail is an exception.
int dispatch(std::vector<std::string> args) {
  Common common;
  CLI::App app("Krait trains, runs and remembers state-space models (the Mamba family).", "krait");
  app.set_version_flag("--version", version_text, "version, commit, devices, libraries");
  app.add_flag_callback(
      "--selftest", [] {}, "every op on every device, against float64; exit 0: all are right");
  if (!args.empty() && args[0] == "--selftest") {
    if (args.size() > 1) throw Usage("--selftest stands alone: it looks at every device");
    return selftest();
  }
  app.require_subcommand(1);
  const CLI::App* chosen = nullptr;
  Work work;
  for (const Command& command : commands()) {
    CLI::App* sub = app.add_subcommand(command.name, command.help);
    if (args.empty() || args[0] != command.name) continue;
    chosen = sub;
    work = command.add(*sub);
    add_common(*sub, common);
  }
  if (chosen) {
    std::vector<std::string> words(args.begin() + 1, args.end());
    add_config_file(*chosen, words);
    words = with_empty_values(*chosen, std::move(words));
    words.insert(words.begin(), args[0]);
    args = words;
  } else if (!args.empty() && !args[0].starts_with("-")) {
    std::vector<std::string> names;
    for (const Command& command : commands()) names.emplace_back(command.name);
    throw Usage(fmt::format("krait has no command \"{}\"{}; `krait --help` lists them", args[0],
                            did_you_mean(args[0], names)));
  }

  std::reverse(args.begin(), args.end());  // what CLI11 expects of a vector
  try {
    app.parse(args);
  } catch (const CLI::CallForVersion& e) {
    print(e.what());
    return kDone;
  } catch (const CLI::CallForHelp&) {
    print(app.help());  // of the command, where there is one
    return kDone;
  } catch (const CLI::ExtrasError&) {
    if (chosen) throw not_expected(*chosen, "krait " + chosen->get_name());
    throw not_expected(app, "krait");
  } catch (const CLI::RequiredError& e) {
    // What is missing may be what a misspelt option was to say.
    if (chosen && has_unknown_option(*chosen))
      throw not_expected(*chosen, "krait " + chosen->get_name());
    throw Usage(fmt::format("{}{} (see `krait {}--help`)", e.what(),
                            chosen ? taken_by(*chosen) : "",
                            chosen ? chosen->get_name() + " " : std::string()));
  } catch (const CLI::ParseError& e) {
    throw Usage(fmt::format("{} (see `krait {}--help`)", e.what(),
                            chosen ? chosen->get_name() + " " : std::string()));
  }
  if (chosen) refuse_empty_values(*chosen);
  init_log(common.quiet);
  if (common.threads > 0) set_threads(common.threads);
  return work(common);
}

}  // namespace

int run(int argc, const char* const* argv) {
  install_signal_handlers();
  try {
    const int code = dispatch({argv + 1, argv + argc});
    flush_output();
    return code;
  } catch (const Interrupted&) {
    return kInterrupted;
  } catch (const ClosedOutput&) {
    return kFailed;  // nobody is there to be told
  } catch (const Usage& e) {
    return complain(kWrongUsage, e.what());
  } catch (const std::bad_alloc&) {
    return complain(kFailed, "out of memory");
  } catch (const std::exception& e) {
    return complain(kFailed, e.what());
  }
}

}  // namespace krait::cli
