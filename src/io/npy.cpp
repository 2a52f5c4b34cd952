#include "krait/io/npy.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "krait/base/error.h"
#include "krait/base/quote.h"

namespace krait {

namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr size_t kAlign = 64;  // of the data, as NumPy writes it

constexpr std::pair<std::string_view, DType> kTypes[] = {
    {"<f4", DType::f32}, {"<f8", DType::f64}, {"<f2", DType::f16}, {"<i4", DType::i32},
    {"<i8", DType::i64}, {"|u1", DType::u8},  {"|b1", DType::u8}};

struct Header {
  std::optional<std::string> descr;
  std::optional<bool> fortran_order;
  std::optional<std::vector<int64_t>> shape;
};

// The header is a Python dict of three known keys: {'descr': '<f4', 'fortran_order': False,
// 'shape': (3, 4), }. Anything else is refused.
class HeaderParser {
 public:
  HeaderParser(std::string_view text, const std::string& where) : text_(text), where_(where) {}

  Header parse() {
    Header h;
    expect('{');
    while (!take('}')) {
      const std::string key = string();
      expect(':');
      if (key == "descr" && !h.descr) {
        h.descr = string();
      } else if (key == "fortran_order" && !h.fortran_order) {
        h.fortran_order = boolean();
      } else if (key == "shape" && !h.shape) {
        h.shape = tuple();
      } else {
        wrong(fmt::format("the key {} is unknown or there twice", quote(key)));
      }
      if (!take(',') && !peek('}')) wrong("expected a comma or the end of the dict");
    }
    skip_space();
    if (at_ != text_.size()) wrong("text after the dict");
    if (!h.descr || !h.fortran_order || !h.shape) wrong("descr, fortran_order or shape is missing");
    return h;
  }

 private:
  [[noreturn]] void wrong(const std::string& what) const {
    fail("{}: header, byte {}: {}", where_, at_, what);
  }
  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }
  bool peek(char c) {
    skip_space();
    return at_ < text_.size() && text_[at_] == c;
  }
  bool take(char c) {
    const bool there = peek(c);
    if (there) ++at_;
    return there;
  }
  void expect(char c) {
    if (!take(c)) wrong(fmt::format("expected '{}'", c));
  }
  std::string string() {
    expect('\'');
    const size_t end = text_.find('\'', at_);
    if (end == text_.npos) wrong("a string without end");
    const std::string_view s = text_.substr(at_, end - at_);
    at_ = end + 1;
    return std::string(s);
  }
  bool boolean() {
    skip_space();
    for (const auto& [word, value] :
         {std::pair{std::string_view("True"), true}, {"False", false}}) {
      if (!text_.substr(at_).starts_with(word)) continue;
      at_ += word.size();
      return value;
    }
    wrong("expected True or False");
  }
  std::vector<int64_t> tuple() {
    std::vector<int64_t> out;
    expect('(');
    while (!take(')')) {
      skip_space();
      int64_t size = 0;
      const char* begin = text_.data() + at_;
      const auto [end, error] = std::from_chars(begin, text_.data() + text_.size(), size);
      if (error != std::errc()) wrong("expected a size");
      at_ += static_cast<size_t>(end - begin);
      out.push_back(size);
      if (!take(',') && !peek(')')) wrong("expected a comma or the end of the tuple");
    }
    return out;
  }

  std::string_view text_;
  const std::string& where_;
  size_t at_ = 0;
};

std::string header_of(DType dtype, const Shape& shape, const std::string& path) {
  std::string_view descr;
  for (const auto& [name, type] : kTypes)
    if (type == dtype && descr.empty()) descr = name;
  require(!descr.empty(), "cannot write {}: NumPy has no {}", path, name_of(dtype));
  std::string dict =
      fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}", descr, shape);
  const size_t prefix = kMagic.size() + 4;  // version 1.0, two bytes of length
  dict.resize((prefix + dict.size() + 1 + kAlign - 1) / kAlign * kAlign - prefix - 1, ' ');
  dict += '\n';
  std::string out(kMagic);
  out +=
      {'\x01', '\x00', static_cast<char>(dict.size() & 0xff), static_cast<char>(dict.size() >> 8)};
  return out + dict;
}

}  // namespace

TensorFile parse_npy(std::span<const std::byte> bytes, const std::string& where) {
  require(as_text(bytes).starts_with(kMagic) && bytes.size() >= kMagic.size() + 2,
          "{}: expected a .npy file", where);
  const int major = std::to_integer<int>(bytes[kMagic.size()]);
  const int minor = std::to_integer<int>(bytes[kMagic.size() + 1]);
  require(major >= 1 && major <= 3 && minor == 0,
          "{}: expected .npy version 1.0, 2.0 or 3.0, got {}.{}", where, major, minor);
  bytes = bytes.subspan(kMagic.size() + 2);
  const size_t length_bytes = major == 1 ? 2 : 4;
  uint32_t length = 0;
  require(bytes.size() >= length_bytes, "{}: the file is cut off in its header", where);
  std::memcpy(&length, bytes.data(), length_bytes);
  bytes = bytes.subspan(length_bytes);
  require(bytes.size() >= length, "{}: the file is cut off in its header", where);
  const Header header = HeaderParser(as_text(bytes.first(length)), where).parse();
  bytes = bytes.subspan(length);

  const auto* known = std::find_if(std::begin(kTypes), std::end(kTypes),
                                   [&](const auto& t) { return t.first == *header.descr; });
  require(known != std::end(kTypes),
          "{}: numbers of type {} are not read; save them as <f4, <f8, <f2, <i4, <i8, |u1 or |b1",
          where, quote(*header.descr));
  const DType dtype = known->second;
  const Shape shape = checked_shape(*header.shape, dtype, where, "");
  const uint64_t expected = static_cast<uint64_t>(shape.numel()) * size_of(dtype);
  require(bytes.size() == expected, "{}: {} {} takes {} bytes, but {} follow the header", where,
          name_of(dtype), shape, expected, bytes.size());

  TensorFile file(where);
  Tensor array = file.view_or_copy(bytes, dtype, shape);
  if (*header.fortran_order && shape.rank > 1) {
    Tensor fortran = array;  // the same memory, first axis dense
    int64_t step = 1;
    for (int i = 0; i < shape.rank; ++i) {
      fortran.stride[static_cast<size_t>(i)] = step;
      step *= shape[i];
    }
    std::vector<std::byte> packed;
    packed.reserve(expected);
    stream_bytes(fortran,
                 [&](auto piece) { packed.insert(packed.end(), piece.begin(), piece.end()); });
    array.data = const_cast<std::byte*>(file.keep_copy(packed));
  }
  file.add("", array);
  return file;
}

TensorFile read_npy(const std::filesystem::path& path) { return map_and_parse(path, parse_npy); }

NpyWriter::NpyWriter(const std::filesystem::path& path, DType dtype, const Shape& shape)
    : path_(path.string()), dtype_(dtype), missing_(shape.numel()), out_(path) {
  out_.write(header_of(dtype, shape, path_));
}

void NpyWriter::write(const Tensor& piece) {
  require(piece.dtype == dtype_ && piece.device.type == Device::cpu,
          "cannot write {}: expected a {} tensor in host memory, got {}", path_, name_of(dtype_),
          name_of(piece.dtype));
  require(piece.numel() <= missing_, "cannot write {}: {} elements are still to come, got {}",
          path_, missing_, piece.numel());
  missing_ -= piece.numel();
  stream_bytes(piece, [&](std::span<const std::byte> bytes) { out_.write(as_text(bytes)); });
}

void NpyWriter::commit() {
  require(missing_ == 0, "cannot write {}: {} elements are missing", path_, missing_);
  out_.commit();
}

void write_npy(const std::filesystem::path& path, const Tensor& array) {
  NpyWriter out(path, array.dtype, array.shape);
  out.write(array);
  out.commit();
}

}  // namespace krait
