// A training run: a directory RUN with log.jsonl, config.toml, last/ and best/, from the first step or from
// where it stopped.
//
// best/ is the checkpoint with the lowest validation loss; without validation data, of all checkpoints that
// were due the one with the lowest mean training loss since the one before it.
#pragma once
#include <functional>
#include <string>

#include "krait/train/log.h"
#include "krait/train/memory.h"
#include "krait/train/options.h"

namespace krait {

// What a run tells while it goes on, and what it asks. All may be empty.
struct RunWatcher {
  // Before the first step: parameters of the model, the plan, a description of the data, and what
  // it counts in: "tokens" or "examples".
  std::function<void(int64_t parameters, const TrainingMemory&, const std::string& data,
                     const std::string& unit)>
      begin;
  std::function<void(const LogRecord&, int64_t steps)> step;
  std::function<void(int64_t step, const std::string& prompt, const std::string& text)> sample;
  std::function<bool()> stop;  // asked after each step: true saves and ends the run
};

struct RunResult {
  LogRecord last;     // of the last step; step 0 where there was nothing left to do
  int64_t steps = 0;  // done over all
  double best_loss = 0;
  bool interrupted = false;
};

// `resume`: goes on from o.out/last (model and from are not looked at). Error: see check(RunOptions);
// o.out holds a run already; a model larger than the memory; a loss that is not finite.
RunResult run_training(RunOptions o, bool resume, const RunWatcher& watcher);

}  // namespace krait
