#include "krait/io/vision.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <set>

#include "krait/base/json.h"
#include "krait/io/host_copy.h"
#include "krait/io/safetensors.h"
#include "krait/io/torch_archive.h"
#include "krait/models/architecture.h"

namespace krait {
namespace fs = std::filesystem;

namespace {

constexpr const char* kModelType = "vim";

// The only .pth file of a folder, or empty.
fs::path checkpoint_in(const fs::path& directory) {
  fs::path found;
  for (const auto& entry : fs::directory_iterator(directory)) {
    if (entry.path().extension() != ".pth") continue;
    require(found.empty(), "{}: expected one .pth file, got {} and {}", directory.string(),
            found.filename().string(), entry.path().filename().string());
    found = entry.path();
  }
  return found;
}

const Shape& shape_of(const TensorFile& file, const std::string& name, int rank) {
  const Shape& s = file.at(name).shape;
  require(s.rank == rank, "{}: tensor \"{}\": expected {} axes, got {}", file.path(), name, rank,
          s);
  return s;
}

models::VisionConfig config_from_shapes(const TensorFile& file) {
  models::VisionConfig c;
  const Shape& patch = shape_of(file, "patch_embed.proj.weight", 4);  // (D, channels, patch, patch)
  const Shape& positions = shape_of(file, "pos_embed", 3);            // (1, patches + 1, D)
  const Shape& A_log = shape_of(file, "layers.0.mixer.A_log", 2);     // (E, N)
  c.mixer.d_model = patch[0];
  c.channels = patch[1];
  c.patch = patch[2];
  c.mixer.d_inner = A_log[0];
  c.mixer.d_state = A_log[1];
  c.mixer.d_conv = shape_of(file, "layers.0.mixer.conv1d.weight", 3)[2];
  c.mixer.dt_rank = shape_of(file, "layers.0.mixer.dt_proj.weight", 2)[1];
  c.shared = !file.find("layers.0.mixer.conv1d_b.weight");
  if (file.find("norm_f.bias")) c.norm = ops::NormKind::layer;
  c.classes = shape_of(file, "head.weight", 2)[0];
  c.n_layer = 0;
  while (file.find(fmt::format("layers.{}.mixer.A_log", c.n_layer))) ++c.n_layer;
  const auto grid =
      static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(positions[1] - 1))));
  require(grid >= 1 && grid * grid + 1 == positions[1] && c.patch >= 1,
          "{}: tensor \"pos_embed\": expected (1, n² + 1, D), got {}", file.path(), positions);
  const int64_t usual = models::VisionConfig().image;
  c.stride = c.patch;
  if (grid > 1 && usual > c.patch && (usual - c.patch) % (grid - 1) == 0 &&
      (usual - c.patch) / (grid - 1) <= c.patch)
    c.stride = (usual - c.patch) / (grid - 1);
  c.image = (grid - 1) * c.stride + c.patch;
  return c;
}

bool is_float(DType t) {
  return t == DType::f32 || t == DType::f16 || t == DType::bf16 || t == DType::f64;
}

}  // namespace

models::VisionConfig parse_vision_config(const std::string& json_text, const std::string& where) {
  const Json json = parse_json(json_text, where);
  const JsonView j(json, where);
  if (j.text("model_type") != kModelType) j.wrong("model_type", fmt::format("\"{}\"", kModelType));
  models::VisionConfig c;
  nn::Mamba1Config& m = c.mixer;
  c.image = j.integer("image_size", c.image);
  c.channels = j.integer("num_channels", c.channels);
  c.patch = j.integer("patch_size", c.patch);
  c.stride = j.integer("stride", c.patch);
  c.n_layer = j.integer("num_hidden_layers", c.n_layer);
  c.norm = j.boolean("rms_norm", true) ? ops::NormKind::rms : ops::NormKind::layer;
  c.norm_eps = static_cast<float>(j.number("norm_epsilon", c.norm_eps));
  m.d_model = j.integer("hidden_size");
  m.d_inner = j.integer("intermediate_size", 2 * m.d_model);
  m.d_state = j.integer("state_size", m.d_state);
  m.d_conv = j.integer("conv_kernel", m.d_conv);
  m.dt_rank = j.integer("time_step_rank", (m.d_model + 15) / 16);
  const std::string type = j.text("bimamba_type", "v2");
  if (type != "v1" && type != "v2") j.wrong("bimamba_type", "\"v1\" or \"v2\"");
  c.shared = type == "v1";
  c.labels = models::read_labels(j);
  c.classes_open = c.labels.empty() && !j.has("num_classes") && !j.has("num_labels");
  if (!c.labels.empty()) c.classes = static_cast<int64_t>(c.labels.size());
  c.classes = j.integer("num_classes", j.integer("num_labels", c.classes));
  try {
    check(c);
  } catch (const Error& e) {
    fail("{}: {}", where, e.what());
  }
  return c;
}

bool is_vision_model(const fs::path& path) {
  if (fs::is_regular_file(path)) return path.extension() == ".pth";
  if (!fs::is_directory(path)) return false;
  if (!fs::exists(path / "config.json")) return !checkpoint_in(path).empty();
  const Json j = read_json(path / "config.json");
  return j.is_object() && j.contains("model_type") && j.at("model_type") == kModelType;
}

// The stored positions in a model with another number of patches.
static Tensor resized(const Tensor& stored, const Shape& shape, std::vector<float>& buffer) {
  std::vector<float> values(static_cast<size_t>(stored.numel()));
  const Tensor from(values.data(), DType::f32, stored.shape);
  copy_host(stored, from);
  buffer.resize(static_cast<size_t>(shape.numel()));
  const Tensor to(buffer.data(), DType::f32, shape);
  models::resize_positions(from, to);
  return to;
}

LoadedVision load_vision_model(const fs::path& path, const LoadOptions& options, bool average,
                               const VisionSize& size) {
  LoadedVision loaded;
  const bool own = fs::exists(path / "config.json");
  require(!own || !average, "{}: only a .pth checkpoint has a moving average of its weights",
          path.string());
  const fs::path checkpoint = own || fs::is_regular_file(path) ? path : checkpoint_in(path);
  loaded.files.push_back(own ? read_safetensors_model(path)
                             : read_torch_archive(checkpoint, average ? "model_ema" : ""));
  const TensorFile& file = loaded.files.back();
  models::VisionConfig config = config_from_shapes(file);
  if (own) {
    const fs::path json = path / "config.json";
    const models::VisionConfig said = parse_vision_config(read_file(json), json.string());
    config.stride = said.stride;
    config.image = said.image;
    config.norm_eps = said.norm_eps;
    config.labels = said.labels;
  }
  if (size.image > 0) config.image = size.image;
  if (size.stride > 0) config.stride = size.stride;
  loaded.stored = file.at("head.weight").dtype;
  loaded.dtype = options.dtype.value_or(loaded.stored == DType::bf16 ? DType::bf16 : DType::f32);
  loaded.model = std::make_unique<models::VisionMamba>(config);
  nn::ParamSet& params = loaded.model->params();
  params.allocate(options.purpose, loaded.dtype, options.sizes_only, options.device);
  std::set<std::string> known;
  std::vector<float> positions;
  for (nn::Param& p : params) {
    known.insert(p.name);
    Tensor t = file.at(p.name);
    if (p.name == "pos_embed" && is_float(t.dtype) && t.size(1) != p.shape[1] &&
        t.size(2) == p.shape[2]) {
      loaded.notes.push_back(fmt::format("pos_embed {} was resized to {}", t.shape, p.shape));
      t = resized(t, p.shape, positions);
    }
    require(t.shape == p.shape && is_float(t.dtype),
            "{}: tensor \"{}\": expected floating-point numbers {}, got {} {}", file.path(), p.name,
            p.shape, name_of(t.dtype), t.shape);
    if (!options.sizes_only) nn::write_numbers(p, [&](const Tensor& to) { store(t, to); });
  }
  for (const NamedTensor& t : file) {
    if (known.count(t.name)) continue;
    require(!t.name.starts_with("layers.") && !t.name.starts_with("rope."),
            "{}: tensor \"{}\" {}: expected nothing in a layer but a norm and a mixer without "
            "biases in its projections, and no rotary positions",
            file.path(), t.name, t.view.shape);
    loaded.notes.push_back(fmt::format(
        "tensor \"{}\" {} is not part of this architecture and is not used", t.name, t.view.shape));
  }
  return loaded;
}

void save_vision_model(const models::VisionMamba& model, const fs::path& directory, DType dtype) {
  std::deque<std::vector<std::byte>> buffers;  // kept until written
  std::vector<NamedTensor> tensors;
  for (const nn::Param& p : model.params())
    tensors.push_back(
        {p.name, on_host_as(dtype, nn::read_numbers(p, buffers.emplace_back()), buffers)});
  write_safetensors_model(directory, tensors);
  const models::VisionConfig& c = model.config();
  OrderedJson j;
  j["model_type"] = kModelType;
  j["image_size"] = c.image;
  j["num_channels"] = c.channels;
  j["patch_size"] = c.patch;
  j["stride"] = c.stride;
  j["hidden_size"] = c.mixer.d_model;
  j["num_hidden_layers"] = c.n_layer;
  j["intermediate_size"] = c.mixer.d_inner;
  j["state_size"] = c.mixer.d_state;
  j["conv_kernel"] = c.mixer.d_conv;
  j["time_step_rank"] = c.mixer.dt_rank;
  j["bimamba_type"] = c.shared ? "v1" : "v2";
  j["num_classes"] = c.classes;
  models::write_labels(j, c.labels);
  j["rms_norm"] = c.norm == ops::NormKind::rms;
  j["norm_epsilon"] = std::stod(fmt::format("{}", c.norm_eps));
  j["torch_dtype"] = std::string(name_of(dtype));
  write_file(directory / "config.json", j.dump(2) + "\n");
}

}  // namespace krait
