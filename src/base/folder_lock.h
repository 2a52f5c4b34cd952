// A folder that only one process works in.
#pragma once
#include <filesystem>

namespace krait {

// Held until it is destroyed or the process ends, in whatever way. Error where another process
// holds the folder. Where the file system knows no locks nobody is kept out.
class FolderLock {
 public:
  explicit FolderLock(const std::filesystem::path& folder);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int fd_;
};

}  // namespace krait
