// NumPy's .npy files (numpy.lib.format, versions 1.0, 2.0 and 3.0): one array.
// Types: f4 f8 f2 i4 i8 u1, and b1 as u8, little-endian.
#pragma once
#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "krait/base/file.h"
#include "krait/io/tensor_file.h"

namespace krait {

// Reads a file through a memory map: one tensor, without a name, always C-contiguous (an array in
// Fortran order is copied). Error: not such a file, another type, more than kMaxRank axes, or a size
// that the header does not account for.
TensorFile read_npy(const std::filesystem::path& path);

// The same from memory, which must outlive the result; `where` starts every message.
TensorFile parse_npy(std::span<const std::byte> bytes, const std::string& where);

// Writes an array piece by piece, for results that do not fit in memory. All or nothing: until
// commit() the file at `path` is untouched.
class NpyWriter {
 public:
  // Error: bfloat16, which NumPy does not know.
  NpyWriter(const std::filesystem::path& path, DType dtype, const Shape& shape);
  void write(const Tensor& piece);  // the next elements in row-major order, of the same type
  void commit();                    // Error if elements are missing

 private:
  std::string path_;
  DType dtype_;
  int64_t missing_;  // elements still to come
  FileWriter out_;
};

void write_npy(const std::filesystem::path& path, const Tensor& array);

}  // namespace krait
