// The commands, one file each. A new one: a file with its function, a line here, a line in commands.cpp.
#pragma once
#include "krait/cli/command.h"

namespace krait::cli {

Work add_bench(CLI::App& app);
Work add_convert(CLI::App& app);
Work add_eval(CLI::App& app);
Work add_generate(CLI::App& app);
Work add_inspect(CLI::App& app);
Work add_logits(CLI::App& app);
Work add_plot(CLI::App& app);
Work add_predict(CLI::App& app);
Work add_tokenize(CLI::App& app);
Work add_train(CLI::App& app);

}  // namespace krait::cli
