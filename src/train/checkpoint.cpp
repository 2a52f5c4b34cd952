#include "krait/train/checkpoint.h"

#include <algorithm>
#include <limits>

#include "krait/base/file.h"
#include "krait/base/json.h"
#include "krait/io/any_model.h"
#include "krait/train/finite.h"

namespace krait {

namespace fs = std::filesystem;

void write_checkpoint(const fs::path& directory, const models::Model& model, const Trainer& trainer,
                      const Progress& progress, const std::string& tokenizer_json) {
  require_finite(model.params(), progress.step);
  write_directory(directory, [&](const fs::path& fresh) {
    save_any_model(model, fresh, DType::f32);
    if (!tokenizer_json.empty()) write_file(fresh / "tokenizer.json", tokenizer_json);
    trainer.save(fresh);
    OrderedJson j;
    j["step"] = progress.step;
    j["seconds"] = progress.seconds;
    j["best_loss"] = progress.best_loss;  // null where infinite
    j["loss_sum"] = progress.loss_sum;
    j["loss_steps"] = progress.loss_steps;
    write_file(fresh / "trainer.json", j.dump(1) + "\n");
  });
}

Progress read_progress(const fs::path& checkpoint) {
  const fs::path path = checkpoint / "trainer.json";
  const Json json = read_json(path);
  const JsonView v(json, path.string());
  return {v.integer("step"), v.number("seconds"),
          v.number("best_loss", std::numeric_limits<double>::infinity()), v.number("loss_sum", 0),
          v.integer("loss_steps", 0)};
}

fs::path last_checkpoint(const fs::path& run) {
  // Where directories cannot be exchanged, there is a moment with only the older one, set aside.
  for (const char* name : {"last", "last.old"})
    if (fs::exists(run / name / "trainer.json")) return run / name;
  fail("{}: expected the directory of a training run with a checkpoint in last/, found none",
       run.string());
}

void share_checkpoint(const fs::path& from, const fs::path& to) {
  write_directory(to, [&](const fs::path& fresh) {
    for (const fs::directory_entry& file : fs::directory_iterator(from)) {
      std::error_code ec;
      const fs::path name = fresh / file.path().filename();
      fs::create_hard_link(file.path(), name, ec);
      if (ec) fs::copy_file(file.path(), name);
    }
  });
}

void prune_checkpoints(const fs::path& run, int64_t keep) {
  std::vector<fs::path> found;
  for (const fs::directory_entry& entry : fs::directory_iterator(run)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_directory() && name.starts_with("step-") &&
        name.find_first_not_of("0123456789", 5) == std::string::npos)
      found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end());  // numbers have leading zeros
  while (static_cast<int64_t>(found.size()) > keep) {
    fs::remove_all(found.front());
    found.erase(found.begin());
  }
}

}  // namespace krait
