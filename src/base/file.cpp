#include "krait/base/file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "krait/base/error.h"

namespace krait {
namespace fs = std::filesystem;

namespace {

struct Fd {
  int fd;
  ~Fd() {
    if (fd >= 0) ::close(fd);
  }
};

int open_to_read(const fs::path& path, struct stat& st) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  require(fd >= 0, "cannot open {}: {}", path.string(), std::strerror(errno));
  if (::fstat(fd, &st) != 0 || S_ISDIR(st.st_mode)) {
    ::close(fd);
    fail("cannot read {}: {}", path.string(), "not a file");
  }
  return fd;
}

void sync_directory(const fs::path& dir) {
  const Fd d{::open(dir.empty() ? "." : dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (d.fd >= 0) ::fsync(d.fd);  // best effort: some filesystems refuse it
}

fs::path folder_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

fs::path beside(const fs::path& path) {
  fs::path p = path;
  p += fmt::format(".part{}", ::getpid());
  return p;
}

// The descriptor that a path names, or -1. Opened anew, what it stands for would have another place to write at.
int named_descriptor(const fs::path& path) {
  const std::string name = path.string();
  if (name == "/dev/stdout") return STDOUT_FILENO;
  if (name == "/dev/stderr") return STDERR_FILENO;
  for (const std::string_view folder : {"/dev/fd/", "/proc/self/fd/"}) {
    if (!name.starts_with(folder)) continue;
    int fd = -1;
    const char* const last = name.data() + name.size();
    const auto [next, error] = std::from_chars(name.data() + folder.size(), last, fd);
    return error == std::errc() && next == last ? fd : -1;
  }
  return -1;
}

// To be written into at its end, or -1.
int open_to_add(const fs::path& path) {
  const int descriptor = named_descriptor(path);
  if (descriptor >= 0) return ::fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  return ::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
}

// False: see errno.
bool write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}

// All that is left to read, about `expected` bytes.
std::string read_all(int fd, const fs::path& path, off_t expected) {
  std::string out;
  if (expected > 0) out.reserve(static_cast<size_t>(expected));
  char buffer[1 << 16];
  for (;;) {
    const ssize_t n = ::read(fd, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    require(n >= 0, "cannot read {}: {}", path.string(), std::strerror(errno));
    if (n == 0) return out;
    out.append(buffer, static_cast<size_t>(n));
  }
}

}  // namespace

std::string read_file(const fs::path& path) {
  struct stat st {};
  const Fd file{open_to_read(path, st)};
  return read_all(file.fd, path, st.st_size);
}

MappedFile::MappedFile(const fs::path& path) {
  struct stat st {};
  const Fd file{open_to_read(path, st)};
  std::string piped;  // a pipe has no size and cannot be mapped
  if (!S_ISREG(st.st_mode)) piped = read_all(file.fd, path, 0);
  size_ = S_ISREG(st.st_mode) ? static_cast<size_t>(st.st_size) : piped.size();
  if (size_ == 0) return;
  void* p = piped.empty() ? ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.fd, 0)
                          : ::mmap(nullptr, size_, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  require(p != MAP_FAILED, "cannot map {}: {}", path.string(), std::strerror(errno));
  if (!piped.empty()) std::memcpy(p, piped.data(), size_);
  data_ = static_cast<const std::byte*>(p);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

bool is_replaceable(const fs::path& path) {
  std::error_code ec;
  const fs::file_type is = fs::status(path, ec).type();
  return named_descriptor(path) < 0 && is != fs::file_type::fifo && is != fs::file_type::character;
}

FileWriter::FileWriter(fs::path path) : path_(std::move(path)) {
  std::error_code ec;
  const bool replaced = is_replaceable(path_);
  if (replaced && fs::is_symlink(path_, ec))
    if (fs::path to = fs::canonical(path_, ec); !ec) path_ = std::move(to);
  require(!path_.empty(), "expected the name of a file to write, got an empty one");
  require(!fs::is_directory(path_, ec), "cannot write {}: Is a directory", path_.string());
  if (!replaced) {
    fd_ = open_to_add(path_);
  } else {
    temp_ = beside(path_);
    fd_ = ::open(temp_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  }
  require(fd_ >= 0, "cannot write {}: {}", path_.string(), std::strerror(errno));
}

FileWriter::~FileWriter() {
  if (fd_ >= 0) {
    ::close(fd_);
    ::unlink(temp_.c_str());  // "" is no file
  }
}

void FileWriter::fail_and_remove(const char* what) {
  const int reason = errno;
  ::close(std::exchange(fd_, -1));
  ::unlink(temp_.c_str());
  fail("cannot {} {}: {}", what, path_.string(), std::strerror(reason));
}

void FileWriter::write(std::string_view bytes) {
  if (!write_all(fd_, bytes)) fail_and_remove("write");
}

void FileWriter::commit() {
  if (temp_.empty()) {
    if (::close(std::exchange(fd_, -1)) != 0)
      fail("cannot write {}: {}", path_.string(), std::strerror(errno));
    return;
  }
  if (::fsync(fd_) != 0) fail_and_remove("sync");
  if (::close(std::exchange(fd_, -1)) != 0 || ::rename(temp_.c_str(), path_.c_str()) != 0) {
    const int reason = errno;
    ::unlink(temp_.c_str());
    fail("cannot replace {}: {}", path_.string(), std::strerror(reason));
  }
  sync_directory(path_.parent_path());
  remove_unfinished(folder_of(path_), path_.filename().string());
}

void append_file(const fs::path& path, std::string_view bytes) {
  const Fd file{open_to_add(path)};
  const bool written = file.fd >= 0 && write_all(file.fd, bytes);
  require(written, "cannot write {}: {}", path.string(), std::strerror(errno));
}

void write_file(const fs::path& path, std::string_view bytes) {
  FileWriter w(path);
  w.write(bytes);
  w.commit();
}

void write_directory(const fs::path& folder, const std::function<void(const fs::path&)>& fill) {
  const fs::path path = folder.has_filename() ? folder : folder.parent_path();  // "name/"
  const fs::path fresh = beside(path);
  fs::path old = path;
  old += ".old";
  std::error_code ignored, ec;
  fs::remove_all(fresh, ignored);
  fs::create_directories(fresh, ec);
  require(!ec, "cannot create {}: {}", fresh.string(), ec.message());
  try {
    fill(fresh);
    sync_directory(fresh);
    // Two directories change places in one call where the file system can do it.
    if (::renameat2(AT_FDCWD, fresh.c_str(), AT_FDCWD, path.c_str(), RENAME_EXCHANGE) == 0) {
      old = fresh;
    } else {
      if (fs::exists(path)) {
        fs::remove_all(old, ignored);
        fs::rename(path, old);
      }
      fs::rename(fresh, path);
    }
  } catch (const fs::filesystem_error& e) {
    if (!fs::exists(path) && fs::exists(old)) fs::rename(old, path, ignored);
    fs::remove_all(fresh, ignored);
    fail("cannot write {}: {}", path.string(), e.code().message());
  } catch (...) {
    fs::remove_all(fresh, ignored);
    throw;
  }
  sync_directory(path.parent_path());
  fs::remove_all(old, ignored);
  remove_unfinished(folder_of(path), path.filename().string());
}

void remove_unfinished(const fs::path& folder, const std::string& of) {
  constexpr std::string_view kPart = ".part";  // as beside() names them
  std::error_code ec;
  std::vector<fs::path> found;
  for (fs::directory_iterator it(folder, ec), end; !ec && it != end; it.increment(ec)) {
    const std::string name = it->path().filename().string();
    const size_t at = name.rfind(kPart);
    if (at == std::string::npos || at == 0 || (!of.empty() && name.substr(0, at) != of)) continue;
    const char *p = name.data() + at + kPart.size(), *last = name.data() + name.size();
    pid_t pid = 0;
    const auto [next, error] = std::from_chars(p, last, pid);
    if (error == std::errc() && next == last && pid > 0 && ::kill(pid, 0) != 0 && errno == ESRCH)
      found.push_back(it->path());
  }
  for (const fs::path& path : found) fs::remove_all(path, ec);
}

}  // namespace krait
