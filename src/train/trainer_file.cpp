// trainer.safetensors: what a run needs beside the weights to go on.
#include <deque>

#include "krait/io/safetensors.h"
#include "krait/train/trainer.h"

namespace krait {

namespace {

const char* const kFile = "trainer.safetensors";

// Each tensor of the file with the memory it is saved from and loaded into.
void visit(models::Model& model, const nn::State* state,
           const std::function<void(const std::string&, const Tensor&)>& fn) {
  for (const nn::Param& p : model.params()) {
    if (!p.trained) continue;
    fn("m." + p.name, p.m);
    fn("v." + p.name, p.v);
  }
  for (size_t i = 0; state && i < state->parts().size(); ++i)
    fn(state->parts()[i].name, state->tensor(i));
}

}  // namespace

// What must be the same for a resumed run to be the run that was never stopped.
std::string Trainer::signature() const {
  const TrainOptions& o = options_;
  return fmt::format(
      "batch-size {}, seq-len {}, grad-accum {}, order {}, carry-state {}, seed {}, "
      "{}",
      o.batch_size, o.seq_len, o.grad_accum, to_string(o.order), o.carry_state, o.seed,
      batches_->description());
}

void Trainer::save(const std::filesystem::path& directory) const {
  std::vector<NamedTensor> tensors;
  std::deque<std::vector<std::byte>> buffers;  // of what comes from a GPU
  visit(model_, carried(), [&](const std::string& name, const Tensor& t) {
    tensors.push_back({name, on_host(t, buffers.emplace_back())});
  });
  write_safetensors(directory / kFile, tensors,
                    {{"step", std::to_string(steps_done_)}, {"run", signature()}});
}

void Trainer::load(const std::filesystem::path& directory) {
  const TensorFile file = read_safetensors(directory / kFile);
  const auto text = [&](const char* key) {
    const auto it = file.metadata.find(key);
    require(it != file.metadata.end(), "{}: \"{}\" is missing in the metadata", file.path(), key);
    return it->second;
  };
  require(text("run") == signature(), "{}: the run was started with {}; it cannot go on with {}",
          file.path(), text("run"), signature());
  const std::string step = text("step");
  require(!step.empty() && step.size() < 16 &&
              step.find_first_not_of("0123456789") == std::string::npos,
          "{}: expected the number of a step, got \"{}\"", file.path(), step);
  steps_done_ = std::stoll(step);
  visit(model_, carried(), [&](const std::string& name, const Tensor& t) {
    const Tensor& stored = file.at(name);
    require(stored.dtype == DType::f32 && stored.shape == t.shape,
            "{}: {}: expected float32 {}, got {} {}", file.path(), name, t.shape,
            name_of(stored.dtype), stored.shape);
    store(stored, t);
  });
}

}  // namespace krait
