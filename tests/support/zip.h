// Zip archives made by hand, right or wrong, for the tests of what reads them.
#pragma once
#include <zlib.h>

#include <cstdint>
#include <string>
#include <vector>

namespace krait::testing {

struct ZipEntry {
  std::string name, data;
  bool deflate = false;
  uint16_t method = 0;  // 0: as `deflate` says
  uint16_t flags = 0;
  bool zip64 = false;       // its sizes and offset stand in a zip64 field
  uint32_t false_size = 0;  // what its directory entry claims to unpack to; 0: the truth
};

inline std::string little(uint64_t value, int bytes) {
  return std::string(reinterpret_cast<const char*>(&value), static_cast<size_t>(bytes));
}

inline std::string deflated(const std::string& data) {
  z_stream z{};
  deflateInit2(&z, 9, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&z, data.size()), '\0');
  z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
  z.avail_in = static_cast<uInt>(data.size());
  z.next_out = reinterpret_cast<Bytef*>(out.data());
  z.avail_out = static_cast<uInt>(out.size());
  ::deflate(&z, Z_FINISH);
  out.resize(z.total_out);
  deflateEnd(&z);
  return out;
}

// end64: the directory's place stands in a zip64 record. Checksums are zero: nobody here looks at them.
inline std::string zip_of(const std::vector<ZipEntry>& entries, bool end64 = false,
                          const std::string& comment = "") {
  std::string out, directory;
  for (const auto& e : entries) {
    const std::string packed = e.deflate ? deflated(e.data) : e.data;
    const uint64_t size = e.false_size ? e.false_size : e.data.size(), header = out.size();
    const uint64_t in64 = 0xffffffff;
    const std::string extra = e.zip64 ? little(1, 2) + little(24, 2) + little(size, 8) +
                                            little(packed.size(), 8) + little(header, 8)
                                      : "";
    const std::string common = little(20, 2) + little(e.flags, 2) +
                               little(e.method    ? e.method
                                      : e.deflate ? 8
                                                  : 0,
                                      2) +
                               little(0, 8) + little(e.zip64 ? in64 : packed.size(), 4) +
                               little(e.zip64 ? in64 : size, 4) + little(e.name.size(), 2);
    out += little(0x04034b50, 4) + common + little(5, 2) + e.name + "extra" + packed;
    directory += little(0x02014b50, 4) + little(20, 2) + common + little(extra.size(), 2) +
                 std::string(10, '\0') + little(e.zip64 ? in64 : header, 4) + e.name + extra;
  }
  const uint64_t start = out.size(), n = entries.size();
  out += directory;
  const uint64_t end = out.size();
  if (end64) {
    out += little(0x06064b50, 4) + little(44, 8) + little(45, 2) + little(45, 2) + little(0, 8) +
           little(n, 8) + little(n, 8) + little(directory.size(), 8) + little(start, 8);
    out += little(0x07064b50, 4) + little(0, 4) + little(end, 8) + little(1, 4);
  }
  const uint64_t n16 = end64 ? 0xffff : n;
  return out + little(0x06054b50, 4) + little(0, 4) + little(n16, 2) + little(n16, 2) +
         little(end64 ? 0xffffffff : directory.size(), 4) + little(end64 ? 0xffffffff : start, 4) +
         little(comment.size(), 2) + comment;
}

}  // namespace krait::testing
