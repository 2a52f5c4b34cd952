#include "krait/io/tensor_file.h"

#include <cstring>
#include <unordered_set>

#include "krait/base/error.h"
#include "krait/base/quote.h"

namespace krait {

const Tensor* TensorFile::find(const std::string& name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second].view;
}

const Tensor& TensorFile::at(const std::string& name) const {
  const Tensor* t = find(name);
  require(t, "{}: expected a tensor {}, but the file has none of that name", path_, quote(name));
  return *t;
}

void TensorFile::add(std::string name, const Tensor& view) {
  require(index_.emplace(name, tensors_.size()).second, "{}: tensor {}: the name is there twice",
          path_, quote(name));
  tensors_.push_back({std::move(name), view});
}

const std::byte* TensorFile::keep_copy(std::span<const std::byte> bytes) {
  constexpr size_t kWord = sizeof(uint64_t);
  const std::shared_ptr<uint64_t[]> copy(new uint64_t[bytes.size() / kWord + 1]);
  if (!bytes.empty()) std::memcpy(copy.get(), bytes.data(), bytes.size());
  keep(copy);
  return reinterpret_cast<const std::byte*>(copy.get());
}

Tensor TensorFile::view_or_copy(std::span<const std::byte> bytes, DType dtype, const Shape& shape) {
  const std::byte* data = bytes.data();
  if (reinterpret_cast<uintptr_t>(data) % size_of(dtype) != 0) data = keep_copy(bytes);
  return Tensor(const_cast<std::byte*>(data), dtype, shape);
}

TensorFile map_and_parse(
    const std::filesystem::path& path,
    const std::function<TensorFile(std::span<const std::byte>, const std::string&)>& parse) {
  const auto map = std::make_shared<MappedFile>(path);
  require(!as_text(map->bytes()).starts_with("version https://git-lfs"),
          "{}: is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
          path.string());
  TensorFile file = parse(map->bytes(), path.string());
  file.keep(map);
  return file;
}

Shape checked_shape(std::span<const int64_t> sizes, DType dtype, const std::string& where,
                    const std::string& name) {
  require(sizes.size() <= kMaxRank, "{}: tensor {}: expected at most {} axes, got {}", where,
          quote(name), kMaxRank, sizes.size());
  Shape shape;
  int64_t bytes = static_cast<int64_t>(size_of(dtype));
  for (const int64_t size : sizes) {
    require(size >= 0 && !__builtin_mul_overflow(bytes, std::max<int64_t>(size, 1), &bytes),
            "{}: tensor {}: a size of {} is impossible", where, quote(name), size);
    shape.dim[static_cast<size_t>(shape.rank++)] = size;
  }
  return shape;
}

void stream_bytes(const Tensor& t, const std::function<void(std::span<const std::byte>)>& sink) {
  const int64_t n = t.numel();
  if (n == 0) return;
  const auto* data = static_cast<const std::byte*>(t.data);
  if (t.contiguous()) return sink({data, t.bytes()});

  constexpr size_t kBuffer = 1 << 20;
  const size_t size = size_of(t.dtype);
  std::vector<std::byte> buffer;
  buffer.reserve(kBuffer);
  std::array<int64_t, kMaxRank> at{};
  int64_t offset = 0;  // of element `at`, in elements
  for (int64_t i = 0; i < n; ++i) {
    const std::byte* p = data + offset * static_cast<int64_t>(size);
    buffer.insert(buffer.end(), p, p + size);
    if (buffer.size() + size > kBuffer) {
      sink(buffer);
      buffer.clear();
    }
    for (int axis = t.rank() - 1; axis >= 0; --axis) {
      const auto a = static_cast<size_t>(axis);
      offset += t.stride[a];
      if (++at[a] < t.shape[axis]) break;
      offset -= t.stride[a] * t.shape[axis];
      at[a] = 0;
    }
  }
  if (!buffer.empty()) sink(buffer);
}

void require_writable(std::span<const NamedTensor> tensors, const std::filesystem::path& path) {
  std::unordered_set<std::string_view> names;
  for (const auto& t : tensors) {
    require(t.view.device.type == Device::cpu, "cannot write {}: tensor {} is not in host memory",
            path.string(), quote(t.name));
    require(names.insert(t.name).second, "cannot write {}: tensor {} is given twice", path.string(),
            quote(t.name));
  }
}

}  // namespace krait
