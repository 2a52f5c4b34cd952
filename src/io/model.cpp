#include "krait/io/model.h"

#include <algorithm>
#include <map>

#include "krait/io/safetensors.h"
#include "krait/io/torch_archive.h"

namespace krait {
namespace fs = std::filesystem;

namespace {

fs::path config_path(const fs::path& directory) {
  require(fs::is_directory(directory),
          "{}: expected a model directory (config.json with its weights)", directory.string());
  const fs::path p = directory / "config.json";
  require(fs::exists(p), "{}: there is no config.json in it", directory.string());
  return p;
}

TensorFile read_weights(const fs::path& directory) {
  if (fs::exists(directory / "model.safetensors") ||
      fs::exists(directory / "model.safetensors.index.json"))
    return read_safetensors_model(directory);
  if (fs::exists(directory / "pytorch_model.bin"))
    return read_torch_archive(directory / "pytorch_model.bin");
  fail(
      "{}: expected model.safetensors, model.safetensors.index.json or pytorch_model.bin beside "
      "config.json",
      directory.string());
}

const std::string& original_name(const nn::Param& p) {
  return p.original.empty() ? p.name : p.original;
}

// Older files spell a few names as the other layout does: both are looked for.
const Tensor* find_stored(const TensorFile& file, const nn::Param& p) {
  const Tensor* t = file.find(p.name);
  return t ? t : file.find(original_name(p));
}

constexpr const char* kEmbedding = "backbone.embeddings.weight";
constexpr const char* kHead = "lm_head.weight";

// Weights win over the config where they say something else about sizes: hub configs are wrong now and
// then. What can be read off shapes is read off them.
void follow_weights(models::Config& c, const TensorFile& file, std::vector<std::string>& notes) {
  const auto shape_of = [&](const std::string& name) -> const Shape* {
    const Tensor* t = file.find(name);
    return t ? &t->shape : nullptr;
  };
  const auto follow = [&]<class T>(const char* what, T& value, T found) {
    if (value == found) return;
    notes.push_back(
        fmt::format("config.json says {} = {}, the weights say {}: the weights are followed", what,
                    value, found));
    value = found;
  };
  const std::string layer = "backbone.layers.0.mixer.";
  if (const Shape* s = shape_of(layer + "A_log"); s && s->rank == 2) {
    follow("d_inner", c.mamba.d_inner, (*s)[0]);
    follow("d_state", c.mamba.d_state, (*s)[1]);
  }
  if (const Shape* s = shape_of(layer + "dt_proj.weight"); s && s->rank == 2)
    follow("dt_rank", c.mamba.dt_rank, (*s)[1]);
  if (const Shape* s = shape_of(layer + "conv1d.weight"); s && s->rank == 3)
    follow("d_conv", c.mamba.d_conv, (*s)[2]);
  follow("conv_bias", c.mamba.conv_bias, shape_of(layer + "conv1d.bias") != nullptr);
  follow("bias", c.mamba.proj_bias, shape_of(layer + "in_proj.bias") != nullptr);
  bool rms = c.norm == ops::NormKind::rms;
  follow("rms_norm", rms, shape_of("backbone.norm_f.bias") == nullptr);
  c.norm = rms ? ops::NormKind::rms : ops::NormKind::layer;

  const Tensor* embedding = file.find(kEmbedding);
  if (!embedding) embedding = file.find("backbone.embedding.weight");
  if (embedding && embedding->rank() == 2) {
    follow("d_model", c.d_model, embedding->size(1));
    c.mamba.d_model = c.d_model;
    if (embedding->size(0) != c.padded_vocab()) {
      int64_t rows = c.padded_vocab();
      follow("rows of the embedding", rows, embedding->size(0));
      c.vocab_size = std::min(c.vocab_size, rows);
      c.vocab_multiple = rows;
    }
  }
  // A tied head may be left out, or stored once for both names, or twice with equal contents.
  const Tensor* head = file.find(kHead);
  if (!head || !embedding) {
    follow("tie_embeddings", c.tie_embeddings, true);
  } else if (c.tie_embeddings && head->data != embedding->data) {
    bool same = head->shape == embedding->shape && head->dtype == embedding->dtype &&
                head->contiguous() && embedding->contiguous() &&
                std::equal(static_cast<const std::byte*>(head->data),
                           static_cast<const std::byte*>(head->data) + head->bytes(),
                           static_cast<const std::byte*>(embedding->data));
    follow("tie_embeddings", c.tie_embeddings, same);
  }
  int64_t layers = 0;
  while (file.find(fmt::format("backbone.layers.{}.mixer.A_log", layers))) ++layers;
  if (layers > 0) follow("n_layer", c.n_layer, layers);
}

bool usable_in_place(const Tensor& t, DType wanted) {
  return t.dtype == wanted && t.contiguous() &&
         reinterpret_cast<uintptr_t>(t.data) % size_of(t.dtype) == 0;
}

bool is_float(DType t) {
  return t == DType::f32 || t == DType::f16 || t == DType::bf16 || t == DType::f64;
}

// FNV-1a, 64 bits.
struct Hash {
  uint64_t h = 0xcbf29ce484222325ull;
  void add(const void* p, size_t n) {
    for (size_t i = 0; i < n; ++i) h = (h ^ static_cast<const uint8_t*>(p)[i]) * 0x100000001b3ull;
  }
};

// Enough to tell models apart without reading them whole: names, shapes and 16 values of each tensor, as
// float64 so that it does not depend on the layout.
void add_to_hash(Hash& h, const nn::Param& p, const Tensor& stored) {
  h.add(p.name.data(), p.name.size());
  const int64_t n = stored.numel(), samples = std::min<int64_t>(n, 16);
  h.add(&n, sizeof n);
  for (int64_t i = 0; i < samples; ++i) {
    const double v = get(stored, i * (n / samples));
    h.add(&v, sizeof v);
  }
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

}  // namespace

models::Config read_config(const fs::path& directory, Layout& layout) {
  const fs::path p = config_path(directory);
  return parse_config(read_file(p), p.string(), layout);
}

LoadedModel load_model(const fs::path& directory, const LoadOptions& options) {
  LoadedModel loaded;
  models::Config config = read_config(directory, loaded.layout);
  loaded.files.push_back(read_weights(directory));
  const TensorFile& file = loaded.files.back();
  follow_weights(config, file, loaded.notes);
  loaded.stored = most_common_type(file);
  loaded.dtype = options.dtype.value_or(loaded.stored == DType::bf16 ? DType::bf16 : DType::f32);
  loaded.model = std::make_unique<models::LanguageModel>(config);
  nn::ParamSet& params = loaded.model->params();

  Hash hash;
  std::vector<const Tensor*> stored;
  for (nn::Param& p : params) {
    const Tensor* t = find_stored(file, p);
    require(t != nullptr, "{}: tensor \"{}\" {} is missing", file.path(), p.name, p.shape);
    require(t->shape == p.shape, "{}: tensor \"{}\": expected shape {}, got {}", file.path(),
            p.name, p.shape, t->shape);
    require(is_float(t->dtype), "{}: tensor \"{}\": expected floating-point numbers, got {}",
            file.path(), p.name, name_of(t->dtype));
    add_to_hash(hash, p, *t);
    stored.push_back(t);
    if (options.purpose == nn::Purpose::inference &&
        usable_in_place(*t, p.keep_float32 ? DType::f32 : loaded.dtype))
      p.value = t->detach();
  }
  loaded.hash = fmt::format("{}-{:016x}", config.architecture, hash.h);
  for (const NamedTensor& t : file) {
    const bool known = std::any_of(params.begin(), params.end(), [&](const nn::Param& p) {
      return t.name == p.name || t.name == p.original;
    });
    if (!known && t.name != kHead)
      loaded.notes.push_back(
          fmt::format("tensor \"{}\" {} is not part of this architecture and is not used", t.name,
                      t.view.shape));
  }

  params.allocate(options.purpose, loaded.dtype, options.sizes_only);
  if (options.sizes_only) return loaded;
  size_t i = 0;
  for (nn::Param& p : params) {
    const Tensor& from = *stored[i++];
    const Tensor& to = p.master ? p.master : p.value;
    if (to.data != from.data) copy_host(from, to);
  }
  params.round_values();
  return loaded;
}

void save_model(const models::LanguageModel& model, const fs::path& directory, Layout layout,
                DType dtype) {
  // Buffers of converted tensors, kept until written. In the original layout A_log and D stay float32.
  std::vector<std::vector<std::byte>> buffers;
  std::vector<NamedTensor> tensors;
  for (const nn::Param& p : model.params()) {
    Tensor t = p.master ? p.master : p.value.detach();
    const bool pinned =
        layout == Layout::original && (p.name.ends_with(".A_log") || p.name.ends_with(".D"));
    const DType wanted = pinned ? DType::f32 : dtype;
    if (t.dtype != wanted) {
      std::vector<std::byte>& b =
          buffers.emplace_back(static_cast<size_t>(t.numel()) * size_of(wanted));
      const Tensor converted(b.data(), wanted, t.shape);
      copy_host(t, converted);
      t = converted;
    }
    tensors.push_back({layout == Layout::original ? original_name(p) : p.name, t});
  }
  if (layout == Layout::huggingface) {
    write_safetensors_model(directory, tensors);
  } else {
    if (model.config().tie_embeddings) tensors.push_back({kHead, tensors.front().view});
    write_torch_archive(directory / "pytorch_model.bin", tensors);
  }
  write_file(directory / "config.json", config_json(model.config(), layout, dtype));
}

}  // namespace krait
