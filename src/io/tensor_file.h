// What every tensor file gives when read: named read-only views in file order, and the memory behind.
#pragma once
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "krait/base/file.h"
#include "krait/tensor/tensor.h"

namespace krait {

struct NamedTensor {
  std::string name;
  Tensor view;
};

// Strings that a file carries beside its tensors.
using Metadata = std::map<std::string, std::string>;

// The views point into a memory map of the file (or into buffers where its data was misaligned or
// compressed): they must not be written to, and live as long as this object or a copy of it. Tied
// tensors have the same data pointer. A file that shrinks while it is mapped kills the reader, as
// with every memory map: files are replaced by rename, never rewritten in place.
class TensorFile {
 public:
  explicit TensorFile(std::string path) : path_(std::move(path)) {}

  const std::string& path() const { return path_; }  // for messages
  const std::vector<NamedTensor>& tensors() const { return tensors_; }
  auto begin() const { return tensors_.begin(); }
  auto end() const { return tensors_.end(); }
  size_t size() const { return tensors_.size(); }

  const Tensor* find(const std::string& name) const;  // null: no such tensor
  const Tensor& at(const std::string& name) const;    // Error naming file and tensor

  Metadata metadata;

  // For the readers of each format. add: Error where the name is already there.
  void add(std::string name, const Tensor& view);
  void keep(std::shared_ptr<const void> memory) { memory_.push_back(std::move(memory)); }
  // A copy of `bytes` aligned for every number type, kept with the file.
  const std::byte* keep_copy(std::span<const std::byte> bytes);
  // A view of `bytes` at their place, or of a copy where that place is misaligned for `dtype`.
  Tensor view_or_copy(std::span<const std::byte> bytes, DType dtype, const Shape& shape);

 private:
  std::string path_;
  std::vector<NamedTensor> tensors_;
  std::unordered_map<std::string, size_t> index_;
  std::vector<std::shared_ptr<const void>> memory_;
};

// Maps the file at `path` and reads it with `parse(bytes, path)`; the map lives with the result.
TensorFile map_and_parse(
    const std::filesystem::path& path,
    const std::function<TensorFile(std::span<const std::byte>, const std::string&)>& parse);

// Checked sizes: numel and bytes without overflow, rank within kMaxRank, nothing negative.
// Error: `where: tensor "name": ...`.
Shape checked_shape(std::span<const int64_t> sizes, DType dtype, const std::string& where,
                    const std::string& name);

// Hands the elements of a CPU tensor, of any strides, to `sink` in row-major order: all at once where
// they are contiguous, else packed piece by piece through a small buffer.
void stream_bytes(const Tensor& t, const std::function<void(std::span<const std::byte>)>& sink);

// Error where `tensors` cannot be written to `path`: not on the CPU, or a name given twice.
void require_writable(std::span<const NamedTensor> tensors, const std::filesystem::path& path);

}  // namespace krait
