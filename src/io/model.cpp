#include "krait/io/model.h"

#include <algorithm>
#include <deque>
#include <map>
#include <set>

#include "krait/base/hash.h"
#include "krait/io/host_copy.h"
#include "krait/io/safetensors.h"
#include "krait/io/torch_archive.h"
#include "krait/models/architecture.h"
#include "krait/tensor/device.h"

namespace krait {
namespace fs = std::filesystem;

namespace {

fs::path config_path(const fs::path& directory) {
  require(fs::is_directory(directory),
          "{}: expected a model directory (config.json with its weights)", directory.string());
  fs::path p = directory / "config.json";
  const fs::path last = directory / "last";  // of a run
  require(fs::exists(p), "{}: there is no config.json in it{}", directory.string(),
          fs::exists(last / "config.json") ? fmt::format(", but in {}", last.string()) : "");
  return p;
}

// The first file with weights in a folder, or "".
fs::path weights_in(const fs::path& directory) {
  for (const char* name : {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                           "pytorch_model.bin.index.json"})
    if (fs::exists(directory / name)) return directory / name;
  for (const auto& entry : fs::directory_iterator(directory))
    if (entry.path().extension() == ".pt" || entry.path().extension() == ".pth")
      return entry.path();  // as training scripts save them
  return {};
}

TensorFile read_weights(const fs::path& directory) {
  const fs::path file = weights_in(directory);
  require(!file.empty(),
          "{}: expected model.safetensors or pytorch_model.bin, or an index of shards of one "
          "(*.index.json), *.pt or *.pth beside config.json",
          directory.string());
  if (file.filename().string().starts_with("model.safetensors"))
    return read_safetensors_model(directory);
  const auto read = [](const fs::path& p) { return read_torch_archive(p); };
  return file.extension() == ".json" ? read_shards(file, read) : read(file);
}

const std::string& original_name(const nn::Param& p) {
  return p.original.empty() ? p.name : p.original;
}

// The stored tensors of a parameter: one, or its parts, which stand side by side along axis 0. Older files
// spell a few names as the other layout does: both are looked for. Null: missing.
std::vector<const Tensor*> find_stored(const TensorFile& file, const nn::Param& p) {
  std::vector<const Tensor*> found;
  for (const std::string& part : p.parts) found.push_back(file.find(part));
  if (!p.parts.empty()) return found;
  const Tensor* t = file.find(p.name);
  return {t ? t : file.find(original_name(p))};
}

// What a stored tensor must have: the shape of the parameter, or of one of its parts.
Shape stored_shape(const nn::Param& p) {
  if (p.parts.empty()) return p.shape;
  Shape s;
  s.rank = p.shape.rank - 1;
  for (int i = 0; i < s.rank; ++i) s[i] = p.shape[i + 1];
  return s;
}

const std::string& name_of_part(const nn::Param& p, size_t part) {
  return p.parts.empty() ? p.name : p.parts[part];
}

// Weights win over the config where they say something else about sizes. What can be read off shapes is
// read off them.
void follow_stored(models::Config& c, const TensorFile& file, std::vector<std::string>& notes) {
  const auto find = [&](const std::string& name) { return file.find(name); };
  const auto shape_of = [&](const std::string& name) -> const Shape* {
    const Tensor* t = find(name);
    return t ? &t->shape : nullptr;
  };
  const Tensor* embedding = find(c.embedding.name);
  if (!embedding) embedding = find(c.embedding.original);
  if (embedding && embedding->rank() == 2) {
    models::follow_weights("d_model", c.d_model, embedding->size(1), notes);
    if (embedding->size(0) != c.padded_vocab()) {
      int64_t rows = c.padded_vocab();
      models::follow_weights("rows of the embedding", rows, embedding->size(0), notes);
      c.vocab_size = std::min(c.vocab_size, rows);
      c.vocab_multiple = rows;
    }
  }
  if (const auto follow = models::architecture(c.architecture).follow) follow(c, shape_of, notes);

  if (c.task.kind != models::Task::language) return;
  // A tied head may be left out, or stored once for both names, or twice with equal contents.
  const Tensor* head = find(c.head.name);
  if (!head) head = find(c.head.original);
  if (!head || !embedding) {
    models::follow_weights("tie_embeddings", c.tie_embeddings, true, notes);
  } else if (c.tie_embeddings && head->data != embedding->data) {
    const bool same = head->shape == embedding->shape && head->dtype == embedding->dtype &&
                      head->contiguous() && embedding->contiguous() &&
                      std::equal(static_cast<const std::byte*>(head->data),
                                 static_cast<const std::byte*>(head->data) + head->bytes(),
                                 static_cast<const std::byte*>(embedding->data));
    models::follow_weights("tie_embeddings", c.tie_embeddings, same, notes);
  }
}

bool usable_in_place(const Tensor& t, DType wanted) {
  return t.dtype == wanted && t.contiguous() &&
         reinterpret_cast<uintptr_t>(t.data) % size_of(t.dtype) == 0;
}

bool is_float(DType t) {
  return t == DType::f32 || t == DType::f16 || t == DType::bf16 || t == DType::f64;
}

// Enough to tell models apart without reading them whole: names, shapes and 16 values of each tensor, as
// float64 so that it does not depend on the layout.
void add_to_hash(Hash& h, const std::string& name, const Tensor& stored) {
  h.add(name.data(), name.size());
  const int64_t n = stored.numel(), samples = std::min<int64_t>(n, 16);
  h.add(&n, sizeof n);
  for (int64_t i = 0; i < samples; ++i) {
    const double v = get(stored, i * (n / samples));
    h.add(&v, sizeof v);
  }
}

// Of a head that judges sequences.
bool is_of_head(const nn::Param& p) { return p.name == "score.weight" || p.name == "class_token"; }

void draw(const nn::Param& p, size_t stream, const Tensor& to) {
  std::vector<float> values(static_cast<size_t>(p.shape.numel()));
  const Tensor t(values.data(), DType::f32, p.shape);
  p.init(t, Philox{0, stream});
  store(t, to);
}

DType most_common_type(const TensorFile& file) {
  std::map<DType, int64_t> elements;
  for (const NamedTensor& t : file)
    if (is_float(t.view.dtype)) elements[t.view.dtype] += t.view.numel();
  DType best = DType::f32;
  int64_t most = 0;
  for (const auto& [type, n] : elements)
    if (n > most) {
      most = n;
      best = type;
    }
  return best;
}

// Under which a parameter of the model may be stored.
std::set<std::string> stored_names(const models::LanguageModel& model) {
  std::set<std::string> names = {model.config().head.name};
  for (const nn::Param& p : model.params()) {
    names.insert({p.name, original_name(p)});
    names.insert(p.parts.begin(), p.parts.end());
  }
  return names;
}

// Where weights are followed instead of the config, nothing that the config names may be left over: then it is the
// weights that are not whole.
void refuse_what_is_left(const models::Config& said, const TensorFile& file,
                         const std::set<std::string>& used) {
  std::string left, missing;
  try {
    const models::LanguageModel model(said);
    for (const nn::Param& p : model.params()) {
      const std::vector<const Tensor*> parts = find_stored(file, p);
      for (size_t i = 0; i < parts.size(); ++i) {
        const std::string& name = name_of_part(p, i);
        if (!parts[i] && missing.empty()) missing = name;
        if (parts[i] && left.empty() && !used.count(name)) left = name;
      }
    }
  } catch (const Error&) {
    return;  // no such model can be: the weights alone say what there is
  }
  require(left.empty() || missing.empty(), "{}: tensor \"{}\" is missing, though \"{}\" is there",
          file.path(), missing, left);
}

}  // namespace

bool has_weights(const fs::path& directory) {
  return fs::is_directory(directory) && !weights_in(directory).empty();
}

models::Config read_config(const fs::path& directory, Layout& layout) {
  const fs::path p = config_path(directory);
  return parse_config(read_file(p), p.string(), layout);
}

LoadedModel load_model(const fs::path& directory, const LoadOptions& options) {
  LoadedModel loaded;
  models::Config config = read_config(directory, loaded.layout);
  if (options.task) config.task = *options.task;
  loaded.files.push_back(read_weights(directory));
  const TensorFile& file = loaded.files.back();
  const models::Config said = config;
  follow_stored(config, file, loaded.notes);
  loaded.stored = most_common_type(file);
  loaded.dtype = options.dtype.value_or(loaded.stored == DType::bf16 ? DType::bf16 : DType::f32);
  loaded.model = std::make_unique<models::LanguageModel>(config);
  nn::ParamSet& params = loaded.model->params();
  const std::set<std::string> known = stored_names(*loaded.model);
  if (!loaded.notes.empty()) refuse_what_is_left(said, file, known);

  Hash hash;
  std::vector<std::vector<const Tensor*>> stored;
  for (nn::Param& p : params) {
    const std::vector<const Tensor*>& parts = stored.emplace_back(find_stored(file, p));
    const Shape shape = stored_shape(p);
    if (options.task && is_of_head(p) && !parts[0]) {
      loaded.notes.push_back(fmt::format("tensor \"{}\" {} is drawn anew", p.name, p.shape));
      continue;
    }
    for (size_t i = 0; i < parts.size(); ++i) {
      const Tensor* t = parts[i];
      const std::string& name = name_of_part(p, i);
      require(t != nullptr, "{}: tensor \"{}\" {} is missing", file.path(), name, shape);
      require(t->shape == shape, "{}: tensor \"{}\": expected shape {}, got {}", file.path(), name,
              shape, t->shape);
      require(is_float(t->dtype), "{}: tensor \"{}\": expected floating-point numbers, got {}",
              file.path(), name, name_of(t->dtype));
      add_to_hash(hash, name, *t);
    }
    if (options.purpose == nn::Purpose::inference && options.device.type == Device::cpu &&
        p.parts.empty() && usable_in_place(*parts[0], p.keep_float32 ? DType::f32 : loaded.dtype))
      p.value = parts[0]->detach();
  }
  loaded.hash = fmt::format("{}-{:016x}", config.architecture, hash.h);
  for (const NamedTensor& t : file)
    if (!known.count(t.name))
      loaded.notes.push_back(
          fmt::format("tensor \"{}\" {} is not part of this architecture and is not used", t.name,
                      t.view.shape));

  params.allocate(options.purpose, loaded.dtype, options.sizes_only, options.device);
  if (options.sizes_only) return loaded;
  size_t i = 0;
  for (nn::Param& p : params) {
    const std::vector<const Tensor*>& parts = stored[i++];
    nn::write_numbers(p, [&](const Tensor& to) {
      if (p.parts.empty() && !parts[0]) return draw(p, i, to);
      if (p.parts.empty()) store(*parts[0], to);
      for (size_t k = 0; k < p.parts.size(); ++k)
        store(*parts[k], to.select(0, static_cast<int64_t>(k)));
    });
  }
  return loaded;
}

void save_model(const models::LanguageModel& model, const fs::path& directory, Layout layout,
                DType dtype) {
  // Buffers of tensors that are converted or come from a GPU, kept until written. In the original layout
  // A_log and D stay float32.
  std::deque<std::vector<std::byte>> buffers;
  std::vector<NamedTensor> tensors;
  for (const nn::Param& p : model.params()) {
    const bool pinned =
        layout == Layout::original && (p.name.ends_with(".A_log") || p.name.ends_with(".D"));
    const Tensor t = on_host_as(pinned ? DType::f32 : dtype,
                                nn::read_numbers(p, buffers.emplace_back()), buffers);
    if (p.parts.empty())
      tensors.push_back({layout == Layout::original ? original_name(p) : p.name, t});
    for (size_t k = 0; k < p.parts.size(); ++k)
      tensors.push_back({p.parts[k], t.select(0, static_cast<int64_t>(k))});
  }
  if (layout == Layout::huggingface) {
    write_safetensors_model(directory, tensors);
  } else {
    if (model.config().tie_embeddings && !model.judges_sequences())
      tensors.push_back({model.config().head.name, tensors.front().view});
    write_torch_archive(directory / "pytorch_model.bin", tensors);
  }
  write_file(directory / "config.json", config_json(model.config(), layout, dtype));
}

}  // namespace krait
