#include "krait/io/zip_archive.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>

#include "krait/base/error.h"
#include "krait/base/quote.h"

namespace krait {

namespace {

constexpr uint32_t kLocalHeader = 0x04034b50, kDirectoryEntry = 0x02014b50, kEnd = 0x06054b50,
                   kEnd64 = 0x06064b50, kEnd64Locator = 0x07064b50;
constexpr size_t kLocalHeaderSize = 30, kDirectoryEntrySize = 46, kEndSize = 22, kEnd64Size = 56,
                 kEnd64LocatorSize = 20, kMaxComment = 65535;
constexpr uint32_t kIn64 = 0xffffffff;  // a 32-bit field whose value stands in the zip64 field
constexpr uint16_t kZip64Field = 1;
constexpr uint16_t kStored = 0, kDeflated = 8;
constexpr uint64_t kMostDeflate = 1032;  // deflate makes at most this many bytes of one

// Little-endian numbers at offsets of a piece of the archive.
struct Fields {
  std::span<const std::byte> bytes;
  template <class T>
  T at(size_t offset) const {
    T value;
    std::memcpy(&value, bytes.subspan(offset, sizeof(T)).data(), sizeof(T));
    return value;
  }
};

// Where the directory lies.
struct End {
  uint64_t entries = 0, size = 0, offset = 0;
};

End find_end(std::span<const std::byte> bytes, const std::string& where) {
  // The end record is the last thing in the file but for a comment, which is nearly always empty.
  const size_t last = bytes.size() - kEndSize;
  const size_t first = last - std::min(last, kMaxComment);
  size_t at = last;
  for (;; --at) {
    const Fields end{bytes.subspan(at)};
    if (end.at<uint32_t>(0) == kEnd && end.at<uint16_t>(20) == last - at) break;
    require(at > first, "{}: no zip directory at its end: the file is cut off", where);
  }
  const Fields end{bytes.subspan(at)};
  End e{end.at<uint16_t>(10), end.at<uint32_t>(12), end.at<uint32_t>(16)};
  require(end.at<uint16_t>(4) == 0 && end.at<uint16_t>(6) == 0 && end.at<uint16_t>(8) == e.entries,
          "{}: archives in several parts are not read", where);
  if (at < kEnd64LocatorSize) return e;
  const Fields locator{bytes.subspan(at - kEnd64LocatorSize)};
  if (locator.at<uint32_t>(0) != kEnd64Locator) return e;
  const uint64_t place = locator.at<uint64_t>(8);
  require(place <= bytes.size() && bytes.size() - place >= kEnd64Size &&
              Fields{bytes.subspan(place)}.at<uint32_t>(0) == kEnd64,
          "{}: its zip64 directory is damaged", where);
  const Fields end64{bytes.subspan(place)};
  return {end64.at<uint64_t>(32), end64.at<uint64_t>(40), end64.at<uint64_t>(48)};
}

// The 64-bit values of the fields that the entry itself could not hold, in the format's order.
void read_zip64(std::span<const std::byte> extra, ZipArchive::Entry& e) {
  while (extra.size() >= 4) {
    const Fields field{extra};
    const size_t size = field.at<uint16_t>(2);
    if (size > extra.size() - 4) return;
    std::span<const std::byte> values = extra.subspan(4, size);
    if (field.at<uint16_t>(0) == kZip64Field) {
      for (uint64_t* value : {&e.size, &e.packed, &e.header}) {
        if (*value != kIn64 || values.size() < sizeof(uint64_t)) continue;
        *value = Fields{values}.at<uint64_t>(0);
        values = values.subspan(sizeof(uint64_t));
      }
    }
    extra = extra.subspan(4 + size);
  }
}

}  // namespace

ZipArchive::ZipArchive(std::span<const std::byte> bytes, std::string where)
    : bytes_(bytes), where_(std::move(where)) {
  require(bytes.size() >= kEndSize, "{}: expected a zip archive, got {} bytes", where_,
          bytes.size());
  const End end = find_end(bytes, where_);
  require(end.offset <= bytes.size() && end.size <= bytes.size() - end.offset &&
              end.entries <= end.size / kDirectoryEntrySize,
          "{}: its zip directory does not fit into the file", where_);
  std::span<const std::byte> rest = bytes.subspan(end.offset, end.size);
  uint64_t left = bytes.size();  // for the data of entries: it may not overlap
  for (uint64_t i = 0; i < end.entries; ++i) {
    require(rest.size() >= kDirectoryEntrySize && Fields{rest}.at<uint32_t>(0) == kDirectoryEntry,
            "{}: entry {} of its zip directory is damaged", where_, i);
    const Fields f{rest};
    const uint16_t flags = f.at<uint16_t>(8), method = f.at<uint16_t>(10);
    const size_t name = f.at<uint16_t>(28), extra = f.at<uint16_t>(30),
                 comment = f.at<uint16_t>(32);
    require(rest.size() - kDirectoryEntrySize >= name + extra + comment,
            "{}: entry {} of its zip directory is damaged", where_, i);
    Entry e;
    const auto* text = reinterpret_cast<const char*>(rest.data()) + kDirectoryEntrySize;
    e.name.assign(text, name);
    e.packed = f.at<uint32_t>(20);
    e.size = f.at<uint32_t>(24);
    e.header = f.at<uint32_t>(42);
    e.deflated = method == kDeflated;
    read_zip64(rest.subspan(kDirectoryEntrySize + name, extra), e);
    require((flags & 1) == 0, "{}: entry {} is encrypted", where_, quote(e.name));
    require(method == kStored || method == kDeflated,
            "{}: entry {} is packed by method {}; only stored and deflated ones are read", where_,
            quote(e.name), method);
    require(e.deflated ? e.size / kMostDeflate <= e.packed : e.size == e.packed,
            "{}: entry {}: {} bytes cannot hold {}", where_, quote(e.name), e.packed, e.size);
    require(e.packed <= left, "{}: entry {}: its data does not fit into the file", where_,
            quote(e.name));
    left -= e.packed;
    require(index_.emplace(e.name, entries_.size()).second, "{}: entry {} is there twice", where_,
            quote(e.name));
    entries_.push_back(std::move(e));
    rest = rest.subspan(kDirectoryEntrySize + name + extra + comment);
  }
}

const ZipArchive::Entry* ZipArchive::find(const std::string& name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &entries_[it->second];
}

std::span<const std::byte> ZipArchive::packed_bytes(const Entry& e) const {
  require(e.header <= bytes_.size() && bytes_.size() - e.header >= kLocalHeaderSize &&
              Fields{bytes_.subspan(e.header)}.at<uint32_t>(0) == kLocalHeader,
          "{}: entry {}: its header is damaged", where_, quote(e.name));
  const Fields local{bytes_.subspan(e.header)};
  const uint64_t data =
      e.header + kLocalHeaderSize + local.at<uint16_t>(26) + local.at<uint16_t>(28);
  require(data <= bytes_.size() && bytes_.size() - data >= e.packed,
          "{}: entry {}: its data does not fit into the file", where_, quote(e.name));
  return bytes_.subspan(data, e.packed);
}

std::span<const std::byte> ZipArchive::stored(const Entry& e) const {
  require(!e.deflated, "{}: entry {} is compressed", where_, quote(e.name));
  return packed_bytes(e);
}

std::vector<std::byte> ZipArchive::inflated(const Entry& e) const {
  const auto packed = packed_bytes(e);
  std::vector<std::byte> out(e.size);
  z_stream z{};
  require(inflateInit2(&z, -MAX_WBITS) == Z_OK, "{}: zlib does not start", where_);
  // zlib counts in 32 bits: it is fed in pieces.
  constexpr size_t kPiece = 1 << 30;
  size_t in = 0, done = 0;
  int state = Z_OK;
  while (state == Z_OK) {
    z.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(packed.data())) + in;
    z.avail_in = static_cast<uInt>(std::min(kPiece, packed.size() - in));
    z.next_out = reinterpret_cast<Bytef*>(out.data()) + done;
    z.avail_out = static_cast<uInt>(std::min(kPiece, out.size() - done));
    const size_t had_in = z.avail_in, had_out = z.avail_out;
    state = inflate(&z, Z_NO_FLUSH);
    in += had_in - z.avail_in;
    done += had_out - z.avail_out;
  }
  inflateEnd(&z);
  require(state == Z_STREAM_END && done == out.size(),
          "{}: entry {}: its compressed data is damaged", where_, quote(e.name));
  return out;
}

}  // namespace krait
