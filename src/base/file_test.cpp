#include "krait/base/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <fstream>
#include <thread>

#include "krait/testing/files.h"

namespace krait {
namespace {

namespace fs = std::filesystem;
using testing::error_of;
using testing::TempDir;

size_t entries(const fs::path& dir) {
  size_t n = 0;
  for ([[maybe_unused]] const auto& e : fs::directory_iterator(dir)) ++n;
  return n;
}

// The largest file that this process may write, for the length of a scope: as good as a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit before_{};
  void (*handler_)(int);
};

TEST(File, WritesAndReads) {
  const TempDir dir;
  const std::string text("a\0b\n", 4);
  write_file(dir / "f", text);
  EXPECT_EQ(read_file(dir / "f"), text);
  const MappedFile map(dir / "f");
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(map.bytes().data()), map.bytes().size()),
            text);
  EXPECT_EQ(entries(dir.path()), 1u);
}

TEST(File, EmptyFile) {
  const TempDir dir;
  write_file(dir / "f", "");
  EXPECT_EQ(read_file(dir / "f"), "");
  EXPECT_TRUE(MappedFile(dir / "f").bytes().empty());
}

TEST(File, ErrorsNamePathAndReason) {
  const TempDir dir;
  const std::string missing = (dir / "none").string();
  EXPECT_EQ(error_of([&] { read_file(missing); }),
            "cannot open " + missing + ": No such file or directory");
  EXPECT_EQ(error_of([&] { MappedFile m(missing); }),
            "cannot open " + missing + ": No such file or directory");
  EXPECT_EQ(error_of([&] { read_file(dir.path()); }),
            "cannot read " + dir.path().string() + ": not a file");
  const std::string nowhere = (dir / "none/f").string();
  EXPECT_EQ(error_of([&] { write_file(nowhere, "x"); }),
            "cannot write " + nowhere + ": No such file or directory");
}

TEST(FileWriter, WithoutCommitNothingChanges) {
  const TempDir dir;
  write_file(dir / "f", "old");
  {
    FileWriter w(dir / "f");
    w.write("new");
  }
  EXPECT_EQ(read_file(dir / "f"), "old");
  EXPECT_EQ(entries(dir.path()), 1u);
}

TEST(FileWriter, OldFileStaysWhenTheDiskIsFull) {
  const TempDir dir;
  write_file(dir / "f", "old");
  {
    const FileSizeLimit limit(1000);
    FileWriter w(dir / "f");
    EXPECT_EQ(error_of([&] { w.write(std::string(5000, 'x')); }),
              "cannot write " + (dir / "f").string() + ": File too large");
  }
  EXPECT_EQ(read_file(dir / "f"), "old");
  EXPECT_EQ(entries(dir.path()), 1u) << "the file beside was left behind";
}

TEST(FileWriter, CannotReplaceAFolder) {
  const TempDir dir;
  fs::create_directory(dir / "f");
  EXPECT_EQ(error_of([&] { FileWriter writer(dir / "f"); }),
            "cannot write " + (dir / "f").string() + ": Is a directory");
  EXPECT_EQ(entries(dir.path()), 1u);
}

TEST(FileWriter, WritesIntoAPipeAndLeavesItThere) {
  const TempDir dir;
  const fs::path pipe = dir / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const int end = ::open(pipe.c_str(), O_RDWR | O_NONBLOCK);
  write_file(pipe, "hello");
  EXPECT_TRUE(fs::is_fifo(pipe));
  EXPECT_EQ(entries(dir.path()), 1u);
  char read[8] = {};
  EXPECT_EQ(::read(end, read, sizeof read), 5);
  EXPECT_STREQ(read, "hello");
  ::close(end);
}

TEST(FileWriter, WritesIntoADescriptorWhereItStands) {
  const TempDir dir;
  const int fd = ::open((dir / "f").c_str(), O_WRONLY | O_CREAT, 0600);
  ASSERT_EQ(::write(fd, "a", 1), 1);
  write_file("/dev/fd/" + std::to_string(fd), "b");
  append_file("/proc/self/fd/" + std::to_string(fd), "c");
  ASSERT_EQ(::write(fd, "d", 1), 1);
  ::close(fd);
  EXPECT_EQ(read_file(dir / "f"), "abcd");
  EXPECT_EQ(entries(dir.path()), 1u);
  EXPECT_NE(error_of([&] { write_file("/dev/fd/" + std::to_string(fd), "b"); }), "");
}

TEST(FileWriter, TakesAwayWhatDeadProcessesLeftOfTheSameFile) {
  const TempDir dir;
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  const std::string part = ".part" + std::to_string(child);
  for (const std::string name : {"f", "g"}) std::ofstream(dir / (name + part)) << "x";
  write_file(dir / "f", "y");
  EXPECT_FALSE(fs::exists(dir / ("f" + part)));
  EXPECT_TRUE(fs::exists(dir / ("g" + part)));
  fs::create_directory(dir / ("folder" + part));
  write_directory(dir / "folder", [](const fs::path&) {});
  EXPECT_FALSE(fs::exists(dir / ("folder" + part)));
}

TEST(FileWriter, ReplacesWhatALinkPointsTo) {
  const TempDir dir;
  fs::create_directory(dir / "far");
  write_file(dir / "far" / "file", "old");
  fs::create_symlink(dir / "far" / "file", dir / "link");
  write_file(dir / "link", "new");
  EXPECT_TRUE(fs::is_symlink(dir / "link"));
  EXPECT_EQ(read_file(dir / "far" / "file"), "new");
}

TEST(WriteDirectory, MakesAndReplaces) {
  const TempDir dir;
  for (const std::string text : {"one", "two"}) {
    write_directory(dir / "d", [&](const fs::path& p) { write_file(p / text, text); });
    EXPECT_EQ(read_file(dir / "d" / text), text);
    EXPECT_EQ(entries(dir / "d"), 1u) << "files of the older folder are still there";
  }
  write_directory(dir / "e/", [&](const fs::path& p) { write_file(p / "f", "f"); });
  EXPECT_EQ(read_file(dir / "e" / "f"), "f") << "a name that ends in a slash";
  EXPECT_EQ(entries(dir.path()), 2u);
}

TEST(WriteDirectory, OldFolderStaysOnAnyError) {
  const TempDir dir;
  write_directory(dir / "d", [&](const fs::path& p) { write_file(p / "f", "old"); });
  EXPECT_EQ(error_of([&] {
              write_directory(dir / "d", [&](const fs::path& p) {
                write_file(p / "f", "new");
                fail("no more");
              });
            }),
            "no more");
  {
    const FileSizeLimit limit(1000);
    EXPECT_THROW(
        write_directory(dir / "d",
                        [&](const fs::path& p) { write_file(p / "f", std::string(5000, 'x')); }),
        Error);
  }
  EXPECT_EQ(read_file(dir / "d" / "f"), "old");
  EXPECT_EQ(entries(dir.path()), 1u);
}

TEST(RemoveUnfinished, TakesWhatDeadProcessesLeft) {
  const TempDir dir;
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  const std::string dead = std::to_string(child), alive = std::to_string(::getpid());
  fs::create_directories(dir / ("last.part" + dead) / "inside");
  for (const std::string& name : {"f.part" + dead, "f.part" + alive, "f.part" + dead + "x",
                                  std::string("f.part"), std::string("part"), ".part" + dead})
    std::ofstream(dir / name) << "x";
  remove_unfinished(dir.path());
  EXPECT_FALSE(fs::exists(dir / ("last.part" + dead)));
  EXPECT_FALSE(fs::exists(dir / ("f.part" + dead)));
  EXPECT_TRUE(fs::exists(dir / ("f.part" + alive)));
  EXPECT_EQ(entries(dir.path()), 5u);
  remove_unfinished(dir / "nowhere");
}

TEST(MappedFile, ReadsAPipeToItsEnd) {
  const TempDir dir;
  const std::string text(200'000, 'x');
  ASSERT_EQ(::mkfifo((dir / "pipe").c_str(), 0600), 0);
  std::thread writer([&] { std::ofstream(dir / "pipe") << text; });
  const MappedFile map(dir / "pipe");
  writer.join();
  ASSERT_EQ(map.bytes().size(), text.size());
  EXPECT_EQ(std::memcmp(map.bytes().data(), text.data(), text.size()), 0);
}

}  // namespace
}  // namespace krait
