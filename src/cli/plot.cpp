// krait plot: the logs of training runs as one SVG, or as a small plot in the terminal.
#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <filesystem>
#include <limits>
#include <memory>

#include "krait/base/file.h"
#include "krait/cli/commands.h"
#include "krait/train/plot/svg.h"
#include "krait/train/plot/terminal.h"

namespace krait::cli {

namespace {

struct PlotArguments {
  std::vector<std::string> runs;
  std::string out;
};

plot::NamedRun read_run(const std::string& path) {
  std::filesystem::path log = path;
  if (std::filesystem::is_directory(log)) log /= "log.jsonl";
  plot::NamedRun run{path, read_log(log)};
  require(!run.log.empty(), "{}: the log has no steps yet", log.string());
  return run;
}

void print_summary(const plot::NamedRun& run) {
  const LogRecord& last = run.log.back();
  double best = std::numeric_limits<double>::quiet_NaN();
  for (const LogRecord& r : run.log)
    if (r.valid_loss && !(*r.valid_loss >= best)) best = *r.valid_loss;
  OrderedJson j;
  j["run"] = run.name;
  j["steps"] = last.step;
  j["loss"] = last.loss;
  j["best_valid_loss"] = best;
  j["tokens"] = last.tokens;
  j["seconds"] = last.seconds;
  print_json(j);
}

int terminal_columns() {
  winsize size = {};
  if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return std::min<int>(size.ws_col, 120);
}

int work(const PlotArguments& a, const Common& common) {
  std::vector<plot::NamedRun> runs;
  for (const std::string& path : a.runs) runs.push_back(read_run(path));
  if (!a.out.empty()) write_file(a.out, plot::svg(runs));
  if (common.json) {
    for (const plot::NamedRun& run : runs) print_summary(run);
  } else if (!a.out.empty()) {
    print_line("{}", a.out);
  } else {
    print(plot::terminal(runs, terminal_columns(), ::isatty(STDOUT_FILENO) != 0));
  }
  return kDone;
}

}  // namespace

Work add_plot(CLI::App& app) {
  const auto a = std::make_shared<PlotArguments>();
  app.add_option("RUN", a->runs, "directories of training runs, or their log.jsonl")->required();
  app.add_option("--out", a->out, "write an SVG image to this file");
  return [a](const Common& common) { return work(*a, common); };
}

}  // namespace krait::cli
