// The writing half of torch_archive.h: a zip archive of stored entries, each starting at a multiple of
// 64 bytes as torch's own do (it maps them), and the pickle that names the tensors.
#include <zlib.h>

#include <limits>
#include <map>
#include <tuple>
#include <vector>

#include "krait/base/error.h"
#include "krait/base/quote.h"
#include "krait/io/torch_archive.h"

namespace krait {

namespace {

constexpr uint64_t kAlign = 64;
constexpr uint32_t kIn64 = 0xffffffff;

struct Bytes {
  std::string out;
  template <class T>
  Bytes& number(T value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Bytes& text(std::string_view t) {
    out += t;
    return *this;
  }
};

// Streams entries into a file and remembers them for the directory. APPNOTE.TXT 6.3.10, 4.3 and 4.5.3.
class ZipWriter {
 public:
  explicit ZipWriter(const std::filesystem::path& path) : out_(path) {}

  void add(const std::string& name, const Tensor& data) {
    uLong crc = crc32(0, nullptr, 0);
    stream_bytes(data, [&](std::span<const std::byte> b) {
      crc = crc32_z(crc, reinterpret_cast<const Bytef*>(b.data()), b.size());
    });
    begin(name, static_cast<uint32_t>(crc), data.bytes());
    stream_bytes(data, [&](std::span<const std::byte> b) { write(as_text(b)); });
  }

  void add(const std::string& name, std::string_view data) {
    add(name,
        Tensor(const_cast<char*>(data.data()), DType::u8, {static_cast<int64_t>(data.size())}));
  }

  void commit() {
    const uint64_t start = at_;
    for (const Entry& e : entries_) write(directory_entry(e));
    const uint64_t size = at_ - start, end = at_;
    const uint64_t n = entries_.size();
    if (start >= kIn64 || n >= 0xffff) {
      Bytes b;
      b.number<uint32_t>(0x06064b50).number<uint64_t>(44).number<uint16_t>(45).number<uint16_t>(45);
      b.number<uint32_t>(0).number<uint32_t>(0).number(n).number(n).number(size).number(start);
      b.number<uint32_t>(0x07064b50).number<uint32_t>(0).number(end).number<uint32_t>(1);
      write(b.out);
    }
    const auto n16 = static_cast<uint16_t>(std::min<uint64_t>(n, 0xffff));
    Bytes b;
    b.number<uint32_t>(0x06054b50).number<uint32_t>(0).number(n16).number(n16);
    b.number(low(size)).number(low(start)).number<uint16_t>(0);
    write(b.out);
    out_.commit();
  }

 private:
  struct Entry {
    std::string name;
    uint32_t crc = 0;
    uint64_t size = 0, header = 0;
  };

  static uint32_t low(uint64_t v) { return v >= kIn64 ? kIn64 : static_cast<uint32_t>(v); }

  void write(std::string_view bytes) {
    out_.write(bytes);
    at_ += bytes.size();
  }

  // What local header and directory share: version, flags (names are UTF-8), method, time, date, sums.
  static Bytes common(const Entry& e) {
    Bytes b;
    const uint16_t version = e.size >= kIn64 || e.header >= kIn64 ? 45 : 20;
    b.number(version).number<uint16_t>(0x0800).number<uint16_t>(0).number<uint16_t>(0);
    b.number<uint16_t>(0x21)
        .number(e.crc)
        .number(low(e.size))
        .number(low(e.size));  // 1 January 1980
    b.number(static_cast<uint16_t>(e.name.size()));
    return b;
  }

  void begin(const std::string& name, uint32_t crc, uint64_t size) {
    const Entry& e = entries_.emplace_back(Entry{name, crc, size, at_});
    Bytes extra;
    if (size >= kIn64) extra.number<uint16_t>(1).number<uint16_t>(16).number(size).number(size);
    // A field "FB" of padding, as torch's writer has, brings the data to its boundary.
    const uint64_t data = at_ + 30 + name.size() + extra.out.size() + 4;
    const auto padding = static_cast<uint16_t>((kAlign - data % kAlign) % kAlign);
    extra.text("FB").number(padding).text(std::string(padding, 'Z'));
    Bytes b;
    b.number<uint32_t>(0x04034b50).text(common(e).out);
    b.number(static_cast<uint16_t>(extra.out.size())).text(name).text(extra.out);
    write(b.out);
  }

  static std::string directory_entry(const Entry& e) {
    Bytes extra;
    if (e.size >= kIn64) extra.number(e.size).number(e.size);
    if (e.header >= kIn64) extra.number(e.header);
    const auto zip64 = static_cast<uint16_t>(extra.out.size());
    Bytes b;
    b.number<uint32_t>(0x02014b50).number<uint16_t>(45).text(common(e).out);
    b.number(static_cast<uint16_t>(zip64 ? zip64 + 4 : 0)).number<uint16_t>(0).number<uint16_t>(0);
    b.number<uint16_t>(0).number<uint32_t>(0).number(low(e.header)).text(e.name);
    if (zip64) b.number<uint16_t>(1).number(zip64).text(extra.out);
    return b.out;
  }

  FileWriter out_;
  uint64_t at_ = 0;
  std::vector<Entry> entries_;
};

// Opcodes of protocol 2, see pickle.cpp.
class PickleWriter {
 public:
  PickleWriter() { global("\x80\x02", "collections", "OrderedDict").text(")R("); }

  void tensor(const std::string& name, const Tensor& t, const std::string& storage) {
    string(name);
    global("", "torch._utils", "_rebuild_tensor_v2").text("((");
    string("storage");
    global("", "torch", storage_type(t.dtype));
    string(storage);
    string("cpu");
    integer(t.numel());
    out_.text("tQ");
    integer(0);
    tuple({t.shape.dim.begin(), t.shape.dim.begin() + t.rank()});
    const Tensor dense(t.data, t.dtype, t.shape);
    tuple({dense.stride.begin(), dense.stride.begin() + t.rank()});
    out_.text("\x89");                                      // requires_grad
    global("", "collections", "OrderedDict").text(")RtR");  // hooks
  }

  std::string finish() { return out_.text("u.").out; }

 private:
  static std::string_view storage_type(DType t) {
    switch (t) {
      case DType::f32: return "FloatStorage";
      case DType::f16: return "HalfStorage";
      case DType::bf16: return "BFloat16Storage";
      case DType::f64: return "DoubleStorage";
      case DType::i32: return "IntStorage";
      case DType::i64: return "LongStorage";
      case DType::u8: return "ByteStorage";
    }
    return {};
  }

  Bytes& global(std::string_view before, std::string_view module, std::string_view name) {
    return out_.text(before).text("c").text(module).text("\n").text(name).text("\n");
  }
  void string(std::string_view s) {
    out_.text("X").number(static_cast<uint32_t>(s.size())).text(s);
  }
  void integer(int64_t v) {
    if (v <= std::numeric_limits<int32_t>::max()) {
      out_.text("J").number(static_cast<int32_t>(v));
    } else {
      out_.text("\x8a\x08").number(v);
    }
  }
  void tuple(const std::vector<int64_t>& values) {
    out_.text("(");
    for (const int64_t v : values) integer(v);
    out_.text("t");
  }

  Bytes out_;
};

}  // namespace

void write_torch_archive(const std::filesystem::path& path, std::span<const NamedTensor> tensors) {
  require_writable(tensors, path);
  using Place = std::tuple<const void*, DType, std::vector<int64_t>, std::vector<int64_t>>;
  std::map<Place, std::string> storages;
  std::vector<const Tensor*> distinct;
  PickleWriter pickle;
  for (const auto& [name, t] : tensors) {
    require(name.size() <= std::numeric_limits<uint32_t>::max(),
            "cannot write {}: a name is too long", path.string());
    const Place place{t.data,
                      t.dtype,
                      {t.shape.dim.begin(), t.shape.dim.begin() + t.rank()},
                      {t.stride.begin(), t.stride.begin() + t.rank()}};
    const auto [it, fresh] = storages.emplace(place, std::to_string(distinct.size()));
    if (fresh) distinct.push_back(&t);
    pickle.tensor(name, t, it->second);
  }
  // torch.load takes the folder inside the archive as it comes; torch.save names it after the file.
  ZipWriter zip(path);
  zip.add("archive/data.pkl", pickle.finish());
  zip.add("archive/byteorder", "little");
  for (size_t i = 0; i < distinct.size(); ++i)
    zip.add(fmt::format("archive/data/{}", i), *distinct[i]);
  zip.add("archive/version", "3\n");
  zip.commit();
}

}  // namespace krait
