// Documents of text: plain files, JSON lines, folders, stdin. All text is UTF-8.
#pragma once
#include <functional>
#include <string>
#include <string_view>

namespace krait {

// Gets each document with a name for messages ("corpus.jsonl:12").
using DocumentSink = std::function<void(std::string_view text, const std::string& where)>;

// Reads the documents of one source, in order:
//   *.jsonl    one a line: an object whose "text" is a string; blank lines are skipped
//   a folder   its regular files in name order, hidden ones left out; each a document (a .jsonl: one a
//              line); files with a NUL byte near the start are no text and are skipped with a warning
//   -          stdin, one document
//   else       the file, one document
// Error names the file, and the line of malformed UTF-8 or JSON.
void read_documents(const std::string& source, const DocumentSink& sink);

// The documents of JSON lines that are in memory; `name` is that of their file.
void read_jsonl(std::string_view text, const std::string& name, const DocumentSink& sink);

// Error names `where` and the line of the first byte that is not UTF-8.
void check_utf8(std::string_view text, const std::string& where);

}  // namespace krait
