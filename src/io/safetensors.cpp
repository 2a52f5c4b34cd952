#include "krait/io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "krait/base/error.h"
#include "krait/base/json.h"
#include "krait/base/quote.h"

namespace krait {
namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little,
              "tensor files hold little-endian numbers");

namespace {

constexpr size_t kLengthBytes = 8;
constexpr uint64_t kMaxHeader = 100'000'000;  // the format's own limit
constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

constexpr std::pair<std::string_view, DType> kTypes[] = {
    {"F32", DType::f32}, {"F16", DType::f16}, {"BF16", DType::bf16}, {"F64", DType::f64},
    {"I32", DType::i32}, {"I64", DType::i64}, {"U8", DType::u8},     {"BOOL", DType::u8}};

struct Entry {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  uint64_t begin = 0, end = 0;  // bytes from the start of the data
};

// A list of non-negative integers.
std::vector<int64_t> sizes_of(const JsonView& info, const std::string& key) {
  std::vector<int64_t> out;
  const Json& list = info.at(key);
  if (!list.is_array()) info.wrong(key, "a list of sizes");
  for (const Json& size : list) {
    const bool fits = size.is_number_unsigned() && size.get<uint64_t>() <= uint64_t{INT64_MAX};
    if (!fits) info.wrong(key, "a list of sizes");
    out.push_back(size.get<int64_t>());
  }
  return out;
}

Entry parse_entry(const std::string& name, const Json& json, const std::string& where) {
  const JsonView info(json, fmt::format("{}: tensor {}", where, quote(name)));
  Entry e;
  e.name = name;
  const std::string type = info.text("dtype");
  const auto* known = std::find_if(std::begin(kTypes), std::end(kTypes),
                                   [&](const auto& t) { return t.first == type; });
  require(
      known != std::end(kTypes),
      "{}: tensor {}: numbers of type {} are not read; save it as F32, F16, BF16, F64, I32, I64, "
      "U8 or BOOL",
      where, quote(name), quote(type));
  e.dtype = known->second;
  e.shape = checked_shape(sizes_of(info, "shape"), e.dtype, where, name);
  const auto offsets = sizes_of(info, "data_offsets");
  if (offsets.size() != 2 || offsets[0] > offsets[1]) info.wrong("data_offsets", "[begin, end]");
  e.begin = static_cast<uint64_t>(offsets[0]);
  e.end = static_cast<uint64_t>(offsets[1]);
  const uint64_t expected = static_cast<uint64_t>(e.shape.numel()) * size_of(e.dtype);
  require(e.end - e.begin == expected,
          "{}: tensor {}: {} {} takes {} bytes, but its offsets [{}, {}] hold {}", where,
          quote(name), name_of(e.dtype), e.shape, expected, e.begin, e.end, e.end - e.begin);
  return e;
}

std::string shard_name(size_t i, size_t n) {
  return fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, n);
}

// weight_map of the index: shard -> names, both sorted.
std::map<std::string, std::vector<std::string>> read_index(const fs::path& path) {
  const Json json = read_json(path);
  const JsonView map = JsonView(json, path.string()).object("weight_map");
  std::map<std::string, std::vector<std::string>> shards;
  for (const auto& [name, value] : map.json().items()) {
    const std::string shard = map.text(name);
    const bool plain = !shard.empty() && shard != "." && shard != ".." &&
                       shard.find('/') == shard.npos && shard.find('\0') == shard.npos;
    require(plain, "{}: tensor {}: expected the name of a file in the same folder, got {}",
            path.string(), quote(name), quote(shard));
    shards[shard].push_back(name);
  }
  return shards;
}

std::string_view type_name(DType t) {
  for (const auto& [name, type] : kTypes)
    if (type == t) return name;
  return {};
}

std::string header_of(std::span<const NamedTensor> tensors, const Metadata& metadata,
                      const fs::path& path) try {
  std::string text = "{";
  if (!metadata.empty()) text += "\"__metadata__\":" + Json(metadata).dump();
  uint64_t offset = 0;
  for (const auto& [name, t] : tensors) {
    const std::vector<int64_t> shape(t.shape.dim.begin(), t.shape.dim.begin() + t.rank());
    text += fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{},{}]}}",
                        text.size() > 1 ? "," : "", Json(name).dump(), type_name(t.dtype),
                        Json(shape).dump(), offset, offset + t.bytes());
    offset += t.bytes();
  }
  text += "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data starts at a multiple of 8
  return text;
} catch (const Json::exception&) {
  fail("cannot write {}: a name or the metadata is not UTF-8", path.string());
}

}  // namespace

TensorFile parse_safetensors(std::span<const std::byte> bytes, const std::string& where) {
  require(bytes.size() >= kLengthBytes, "{}: expected a safetensors file, got {} bytes", where,
          bytes.size());
  uint64_t header_size = 0;
  std::memcpy(&header_size, bytes.data(), kLengthBytes);
  require(
      header_size <= std::min<uint64_t>(bytes.size() - kLengthBytes, kMaxHeader),
      "{}: expected a safetensors file, but its header would take {} of {} bytes: the file is cut "
      "off, or of another format",
      where, header_size, bytes.size());
  const Json header = parse_json(as_text(bytes.subspan(kLengthBytes, header_size)),
                                 where + ": header", JsonKeys::unique);
  require(header.is_object(), "{}: header: expected a JSON object", where);
  const auto data = bytes.subspan(kLengthBytes + header_size);

  TensorFile file(where);
  std::vector<Entry> entries;
  for (const auto& [name, info] : header.items()) {
    if (name != "__metadata__") {
      entries.push_back(parse_entry(name, info, where));
      continue;
    }
    const JsonView metadata(info, where + ": __metadata__");
    for (const auto& [key, value] : info.items()) file.metadata[key] = metadata.text(key);
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t covered = 0;
  for (const Entry& e : entries) {
    require(e.end <= data.size(),
            "{}: tensor {}: its data ends at byte {} of {}: the file is cut off", where,
            quote(e.name), e.end, data.size());
    require(e.begin == covered,
            "{}: tensor {}: its data starts at byte {}, {} the tensor before it ends", where,
            quote(e.name), e.begin, e.begin < covered ? "before" : "a hole after");
    covered = e.end;
    file.add(e.name, file.view_or_copy(data.subspan(e.begin, e.end - e.begin), e.dtype, e.shape));
  }
  require(covered == data.size(), "{}: {} bytes follow the last tensor", where,
          data.size() - covered);
  return file;
}

TensorFile read_safetensors(const fs::path& path) { return map_and_parse(path, parse_safetensors); }

TensorFile read_safetensors_model(const fs::path& dir) {
  if (fs::exists(dir / kSingle)) return read_safetensors(dir / kSingle);
  require(fs::exists(dir / kIndex), "{}: expected {} or {}, found neither", dir.string(), kSingle,
          kIndex);
  return read_shards(dir / kIndex, read_safetensors);
}

TensorFile read_shards(const fs::path& index,
                       const std::function<TensorFile(const fs::path&)>& read) {
  TensorFile all(index.string());
  for (const auto& [shard, names] : read_index(index)) {
    const auto part = std::make_shared<TensorFile>(read(index.parent_path() / shard));
    for (const auto& name : names) part->at(name);
    for (const auto& [name, view] : *part)
      if (std::binary_search(names.begin(), names.end(), name)) all.add(name, view);
    all.metadata.insert(part->metadata.begin(), part->metadata.end());
    all.keep(part);
  }
  return all;
}

void write_safetensors(const fs::path& path, std::span<const NamedTensor> tensors,
                       const Metadata& metadata) {
  require_writable(tensors, path);
  for (const auto& t : tensors)
    require(t.name != "__metadata__", "cannot write {}: a tensor may not be named __metadata__",
            path.string());
  const std::string header = header_of(tensors, metadata, path);
  const uint64_t size = header.size();
  FileWriter out(path);
  out.write(&size, kLengthBytes);
  out.write(header);
  for (const auto& t : tensors)
    stream_bytes(t.view, [&](std::span<const std::byte> bytes) { out.write(as_text(bytes)); });
  out.commit();
}

void write_safetensors_model(const fs::path& dir, std::span<const NamedTensor> tensors,
                             int64_t max_shard_bytes) {
  require_writable(tensors, dir);
  const Metadata metadata = {{"format", "pt"}};
  std::vector<std::span<const NamedTensor>> shards;
  int64_t total = 0, filled = 0;
  size_t begin = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto bytes = static_cast<int64_t>(tensors[i].view.bytes());
    if (i > begin && filled + bytes > max_shard_bytes) {
      shards.push_back(tensors.subspan(begin, i - begin));
      begin = i;
      filled = 0;
    }
    filled += bytes;
    total += bytes;
  }
  shards.push_back(tensors.subspan(begin));
  if (shards.size() == 1) return write_safetensors(dir / kSingle, tensors, metadata);

  Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", Json::object()}};
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shard_name(i, shards.size());
    write_safetensors(dir / name, shards[i], metadata);
    for (const auto& t : shards[i]) index["weight_map"][t.name] = name;
  }
  write_file(dir / kIndex, index.dump(2) + "\n");
}

}  // namespace krait
