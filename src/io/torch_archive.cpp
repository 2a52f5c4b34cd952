#include "krait/io/torch_archive.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "krait/base/error.h"
#include "krait/base/quote.h"
#include "krait/io/pickle.h"
#include "krait/io/zip_archive.h"

namespace krait {

namespace {

using Kind = PickleValue::Kind;

constexpr std::pair<std::string_view, DType> kStorages[] = {
    {"FloatStorage", DType::f32},  {"HalfStorage", DType::f16}, {"BFloat16Storage", DType::bf16},
    {"DoubleStorage", DType::f64}, {"IntStorage", DType::i32},  {"LongStorage", DType::i64},
    {"ByteStorage", DType::u8},    {"BoolStorage", DType::u8}};

// torch's legacy files start with a pickled magic number, its oldest ones are tar archives.
constexpr std::string_view kLegacyMagic =
    "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
constexpr int kMaxDepth = 64;  // of dicts in one another

struct Storage {
  std::byte* data = nullptr;
  int64_t numel = 0;
};

const PickleValue* argument(const PickleValue& call, size_t i) {
  const auto& arguments = call.items[1]->items;
  return call.items[1]->is(Kind::tuple) && i < arguments.size() ? arguments[i] : nullptr;
}

// The tensors are rebuilt by functions of torch._utils: name them where v calls one of those.
std::optional<std::string_view> rebuild_function(const PickleValue& v) {
  if (!v.is(Kind::call) || !v.items[0]->is(Kind::global)) return {};
  const PickleValue& f = *v.items[0];
  const bool torch = f.text == "torch._utils" || f.text == "torch._tensor";
  if (!torch || !f.name.starts_with("_rebuild_")) return {};
  return f.name;
}

class Reader {
 public:
  Reader(std::span<const std::byte> bytes, const std::string& where)
      : where_(where), zip_(bytes, where), file_(where) {
    for (const auto& e : zip_.entries()) {
      constexpr std::string_view kPickle = "/data.pkl";
      if (!e.name.ends_with(kPickle)) continue;
      require(prefix_.empty(), "{}: expected one data.pkl, found two", where);
      prefix_ = e.name.substr(0, e.name.size() - kPickle.size() + 1);
    }
    require(!prefix_.empty(),
            "{}: expected a file of torch.save, got a zip archive without data.pkl", where);
    if (zip_.find(prefix_ + "byteorder"))
      require(as_text(entry("byteorder")) == "little",
              "{}: its numbers are big-endian; expected little", where);
  }

  TensorFile read(const std::string& key) {
    const auto bytes = entry("data.pkl");
    const Pickle pickle(bytes, where_);
    walks_ = bytes.size();  // every dict item takes a byte of pickle at least; more are repeats
    const PickleValue* root = &pickle.root();
    require(root->is(Kind::dict), "{}: expected a dict of tensors, got another Python object",
            where_);
    if (!key.empty()) {
      root = find_dict(*root, key);
      require(root, "{}: expected a dict {} in it, but there is none", where_, quote(key));
    } else if (!has_tensors(*root)) {
      for (const char* usual : {"model", "state_dict"}) {
        if (const PickleValue* inner = find_dict(*root, usual)) {
          root = inner;
          break;
        }
      }
    }
    flatten(*root, "", 0);
    require(file_.size() > 0, "{}: holds no tensors{}", where_,
            key.empty() ? "" : " in " + quote(key));
    return std::move(file_);
  }

 private:
  static bool has_tensors(const PickleValue& dict) {
    for (size_t i = 1; i < dict.items.size(); i += 2)
      if (rebuild_function(*dict.items[i])) return true;
    return false;
  }

  static const PickleValue* find_dict(const PickleValue& dict, std::string_view key) {
    const PickleValue* found = nullptr;
    for (size_t i = 0; i + 1 < dict.items.size(); i += 2)
      if (dict.items[i]->is(Kind::string) && dict.items[i]->text == key) found = dict.items[i + 1];
    return found && found->is(Kind::dict) ? found : nullptr;
  }

  // An entry's bytes: in place, or unpacked and kept with the file.
  std::span<const std::byte> entry(const std::string& name) {
    const ZipArchive::Entry* e = zip_.find(prefix_ + name);
    require(e, "{}: expected an entry {}, but there is none", where_, quote(prefix_ + name));
    if (!e->deflated) return zip_.stored(*e);
    const auto unpacked = std::make_shared<std::vector<std::byte>>(zip_.inflated(*e));
    file_.keep(unpacked);
    return *unpacked;
  }

  void flatten(const PickleValue& dict, const std::string& prefix, int depth) {
    require(depth < kMaxDepth, "{}: dicts nested deeper than {}", where_, kMaxDepth);
    for (size_t i = 0; i + 1 < dict.items.size(); i += 2) {
      require(walks_-- > 0, "{}: its dicts repeat each other without end", where_);
      const PickleValue& key = *dict.items[i];
      const PickleValue& value = *dict.items[i + 1];
      const bool wanted = value.is(Kind::dict) || rebuild_function(value);
      if (!wanted || !(key.is(Kind::string) || key.is(Kind::integer))) continue;
      require(prefix.size() + key.text.size() <= kMaxName,
              "{}: a tensor's name is longer than {} bytes", where_, kMaxName);
      const std::string name =
          prefix + (key.is(Kind::string) ? std::string(key.text) : std::to_string(key.integer));
      if (value.is(Kind::dict)) {
        flatten(value, name + ".", depth + 1);
      } else {
        file_.add(name, tensor(value, name, 0));
      }
    }
  }

  [[noreturn]] void wrong(const std::string& name, std::string_view what) const {
    fail("{}: tensor {}: {}", where_, quote(name), what);
  }

  int64_t integer(const PickleValue* v, const std::string& name) const {
    if (!v || !v->is(Kind::integer) || v->integer < 0) wrong(name, "expected a size or an offset");
    return v->integer;
  }

  std::vector<int64_t> integers(const PickleValue* v, const std::string& name) const {
    if (!v || !v->is(Kind::tuple)) wrong(name, "expected sizes and strides");
    std::vector<int64_t> out;
    for (const PickleValue* item : v->items) out.push_back(integer(item, name));
    return out;
  }

  // (storage, offset, sizes, strides, ...) of torch._utils._rebuild_tensor_v2, or a parameter around it.
  Tensor tensor(const PickleValue& v, const std::string& name, int depth) {
    const auto function = rebuild_function(v);
    if (!function || depth > 2) wrong(name, "expected a tensor");
    if (*function == "_rebuild_parameter" || *function == "_rebuild_parameter_with_state") {
      const PickleValue* inner = argument(v, 0);
      if (!inner) wrong(name, "expected a tensor");
      return tensor(*inner, name, depth + 1);
    }
    if (*function != "_rebuild_tensor_v2" && *function != "_rebuild_tensor")
      wrong(name,
            fmt::format("made by {}, so sparse, quantised or of a special type; save it as a plain "
                        "dense tensor",
                        quote(*function)));
    DType dtype = DType::f32;
    const Storage storage = find_storage(argument(v, 0), name, dtype);
    const int64_t offset = integer(argument(v, 1), name);
    const auto sizes = integers(argument(v, 2), name), strides = integers(argument(v, 3), name);
    if (sizes.size() != strides.size()) wrong(name, "expected as many strides as sizes");

    Tensor t(storage.data, dtype, checked_shape(sizes, dtype, where_, name));
    // Tensors that repeat elements (expand) are refused: a copy could be larger than the file.
    int64_t last = offset;  // index of the last element
    for (size_t i = 0; i < sizes.size(); ++i) {
      int64_t step = 0;
      const bool fits =
          sizes[i] == 0 || (!__builtin_mul_overflow(sizes[i] - 1, strides[i], &step) &&
                            !__builtin_add_overflow(last, step, &last));
      if (!fits) last = std::numeric_limits<int64_t>::max();
      t.stride[i] = strides[i];
    }
    const bool inside = t.numel() == 0 ? offset <= storage.numel
                                       : last < storage.numel && t.numel() <= storage.numel;
    if (!inside)
      wrong(name, fmt::format("{} elements from {} to {} lie outside of their storage of {}",
                              t.numel(), offset, last, storage.numel));
    t.data = storage.data + offset * static_cast<int64_t>(size_of(dtype));
    return t;
  }

  // ('storage', torch.FloatStorage, key, device, number of elements)
  Storage find_storage(const PickleValue* v, const std::string& name, DType& dtype) {
    if (!v || !v->is(Kind::persistent) || !v->items[0]->is(Kind::tuple) ||
        v->items[0]->items.size() < 5)
      wrong(name, "expected a storage");
    const auto& id = v->items[0]->items;
    if (!id[0]->is(Kind::string) || id[0]->text != "storage" || !id[2]->is(Kind::string))
      wrong(name, "expected a storage");
    const PickleValue& type = *id[1];
    const auto* known =
        std::find_if(std::begin(kStorages), std::end(kStorages),
                     [&](const auto& s) { return type.is_global("torch", s.first); });
    if (known == std::end(kStorages))
      wrong(name,
            fmt::format("numbers of type {} are not read; save it as float32, float16, bfloat16, "
                        "float64, int32, int64, uint8 or bool",
                        quote(type.name)));
    dtype = known->second;
    const int64_t numel = integer(id[4], name);
    const std::string key(id[2]->text);
    auto it = storages_.find(key);
    if (it == storages_.end()) it = storages_.emplace(key, load(key)).first;
    const auto bytes = it->second;
    if (bytes.size() / size_of(dtype) != static_cast<uint64_t>(numel) ||
        bytes.size() % size_of(dtype) != 0)
      wrong(name, fmt::format("its storage {} has {} bytes; expected {} elements of {}", quote(key),
                              bytes.size(), numel, name_of(dtype)));
    return {const_cast<std::byte*>(bytes.data()), numel};
  }

  // The entry data/<key>; a copy where it is misaligned for some number type (torch aligns to 64).
  std::span<const std::byte> load(const std::string& key) {
    const auto bytes = entry("data/" + key);
    if (reinterpret_cast<uintptr_t>(bytes.data()) % sizeof(double) == 0) return bytes;
    return {file_.keep_copy(bytes), bytes.size()};
  }

  static constexpr size_t kMaxName = 4096;
  const std::string& where_;
  ZipArchive zip_;
  TensorFile file_;
  std::string prefix_;  // "archive/"
  std::unordered_map<std::string, std::span<const std::byte>> storages_;
  uint64_t walks_ = 0;  // items of dicts that may still be looked at
};

// Without what DistributedDataParallel and torch.compile put before every name, in whatever order.
TensorFile unwrapped(TensorFile file) {
  for (const std::string_view wrapper : {"module.", "_orig_mod.", "module."}) {
    if (!std::all_of(file.begin(), file.end(),
                     [&](const NamedTensor& t) { return t.name.starts_with(wrapper); }))
      continue;
    TensorFile inner(file.path());
    for (const NamedTensor& t : file) inner.add(t.name.substr(wrapper.size()), t.view);
    inner.keep(std::make_shared<TensorFile>(std::move(file)));
    file = std::move(inner);
  }
  return file;
}

}  // namespace

TensorFile parse_torch_archive(std::span<const std::byte> bytes, const std::string& where,
                               const std::string& key) {
  const std::string_view text = as_text(bytes);
  const bool tar = text.size() > 262 && text.substr(257, 5) == "ustar";
  require(!text.starts_with(kLegacyMagic) && !tar,
          "{}: is in the format of torch before version 1.6; load it with torch and save it again",
          where);
  require(text.starts_with("PK"),
          "{}: expected a file of torch.save (a zip archive), got another format", where);
  return unwrapped(Reader(bytes, where).read(key));
}

TensorFile read_torch_archive(const std::filesystem::path& path, const std::string& key) {
  return map_and_parse(path, [&](std::span<const std::byte> bytes, const std::string& where) {
    return parse_torch_archive(bytes, where, key);
  });
}

}  // namespace krait
