// The entries of a zip archive in memory. Stored entries are found in place and never copied (libzip
// would copy them: it does not tell where an entry's data lies), compressed ones are inflated by zlib.
// Format: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3 (zip64).
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace krait {

class ZipArchive {
 public:
  struct Entry {
    std::string name;
    uint64_t packed = 0;  // bytes in the archive
    uint64_t size = 0;    // bytes when unpacked
    uint64_t header = 0;  // offset of the local header
    bool deflated = false;
  };

  // Reads the directory. `bytes` must outlive the object; `where` starts every message. Error: no zip
  // archive, a damaged directory, a name there twice, an entry that is encrypted, or packed by anything
  // but deflate.
  ZipArchive(std::span<const std::byte> bytes, std::string where);

  const std::vector<Entry>& entries() const { return entries_; }
  const Entry* find(const std::string& name) const;  // null: no such entry

  // The data of a stored entry, in place. Error if it lies outside the archive.
  std::span<const std::byte> stored(const Entry& entry) const;

  // The data of a deflated entry, unpacked. Error if it is damaged or has another size than stated.
  std::vector<std::byte> inflated(const Entry& entry) const;

 private:
  std::span<const std::byte> packed_bytes(const Entry& entry) const;
  std::span<const std::byte> bytes_;
  std::string where_;
  std::vector<Entry> entries_;
  std::unordered_map<std::string, size_t> index_;
};

}  // namespace krait
