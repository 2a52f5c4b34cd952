// trainer.safetensors: what a run needs beside the weights to go on.
#include <cmath>
#include <deque>

#include "krait/base/threads.h"
#include "krait/io/safetensors.h"
#include "krait/train/trainer.h"

namespace krait {

namespace {

const char* const kFile = "trainer.safetensors";

// Each tensor of the file with the memory it is saved from and loaded into, and whether the signs there are others
// than the file's.
void visit(models::Model& model, const nn::State* state,
           const std::function<void(const std::string&, const Tensor&, bool)>& fn) {
  for (const nn::Param& p : model.params()) {
    if (!p.trained) continue;
    fn("m." + p.name, p.m, false);
    fn("v." + p.name, p.v, bool(p.low));
  }
  for (size_t i = 0; state && i < state->parts().size(); ++i)
    fn(state->parts()[i].name, state->tensor(i), false);
}

// A copy in `buffer`, where `sizes` may lie, with signs(i) as signs; all in the host's memory.
template <class Signs>
Tensor with_signs(const Tensor& sizes, const Signs& signs, std::vector<std::byte>& buffer) {
  buffer.resize(sizes.bytes());
  const Tensor to(buffer.data(), DType::f32, sizes.shape);
  const float* const from = sizes.as<float>();
  parallel_ranges(sizes.numel(), 1 << 16, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) to.as<float>()[i] = std::copysign(from[i], signs(i));
  });
  return to;
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
  visit(model_, carried(), [&](const std::string& name, const Tensor& t, bool other_signs) {
    std::vector<std::byte>& buffer = buffers.emplace_back();
    const Tensor here = on_host(t, buffer);
    tensors.push_back({name, other_signs ? with_signs(
                                               here, [](int64_t) { return 1.0f; }, buffer)
                                         : here});
  });
  write_safetensors(directory / kFile, tensors,
                    {{"step", std::to_string(steps_done_)},
                     {"run", signature()},
                     {"data", std::to_string(batches_->checksum())}});
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
  // Files of older versions do not have it.
  require(!file.metadata.contains("data") || text("data") == std::to_string(batches_->checksum()),
          "{}: the data is other data than the run was started with, if as much of it: go on with "
          "that, or start another run --from this one",
          file.path());
  const std::string step = text("step");
  require(!step.empty() && step.size() < 16 &&
              step.find_first_not_of("0123456789") == std::string::npos,
          "{}: expected the number of a step, got \"{}\"", file.path(), step);
  steps_done_ = std::stoll(step);
  visit(model_, carried(), [&](const std::string& name, const Tensor& t, bool other_signs) {
    const Tensor& stored = file.at(name);
    require(stored.dtype == DType::f32 && stored.shape == t.shape,
            "{}: {}: expected float32 {}, got {} {}", file.path(), name, t.shape,
            name_of(stored.dtype), stored.shape);
    if (!other_signs) return store(stored, t);
    std::vector<std::byte> buffer, signed_buffer;
    const float* const now = on_host(t, buffer).as<float>();
    store(with_signs(
              stored, [&](int64_t i) { return now[i]; }, signed_buffer),
          t);
  });
}

}  // namespace krait
