// Files: whole reads, memory maps, and writes that are all there or not there.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace krait {

// A whole file as bytes. Errors name the path and the system's reason.
std::string read_file(const std::filesystem::path& path);

inline std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// A read-only memory map; the span is valid while the object lives. Empty files give an empty span. What
// cannot be mapped, as a pipe, is read into memory.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Writes a temporary file beside `path`, fsyncs it, renames it to `path` and fsyncs the folder. A
// pipe, a device or a descriptor (/dev/stdout, /dev/fd/3) is written into directly, and a link is followed. On any
// error (a full disk, say) the temporary file is removed, what stood at `path` stays, and Error is thrown. Takes
// away what processes that are gone left of the same file.
class FileWriter {
 public:
  explicit FileWriter(std::filesystem::path path);
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;
  void write(std::string_view bytes);
  void write(const void* data, size_t n) { write({static_cast<const char*>(data), n}); }
  void commit();

 private:
  [[noreturn]] void fail_and_remove(const char* what);
  std::filesystem::path path_, temp_;  // temp_ is empty where path_ is written into
  int fd_ = -1;
};

void write_file(const std::filesystem::path& path, std::string_view bytes);

// Adds to the end of a file, made where there is none; into a pipe, a device or a descriptor.
void append_file(const std::filesystem::path& path, std::string_view bytes);

// A regular file, or none yet: what can be replaced.
bool is_replaceable(const std::filesystem::path& path);

// Makes a folder whole: `fill` writes into a fresh folder beside `path`, which then takes the place of
// `path` in one rename. (A file system that cannot exchange two names has the older folder at
// `path`.old for a moment.)
void write_directory(const std::filesystem::path& path,
                     const std::function<void(const std::filesystem::path&)>& fill);

// Removes from `folder` what the writes above left there half done: those of processes that are gone, of the file or
// folder `name` or of any.
void remove_unfinished(const std::filesystem::path& folder, const std::string& name = "");

}  // namespace krait
