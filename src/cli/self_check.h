// `krait --selftest`: every op, in every type, on every device present, against the float64 definitions
// that the tests use. For a bare machine: needs no files and less than a minute.
#pragma once

namespace krait::cli {

// Prints a line a check; 0 where all are within their bounds, else 1.
int selftest();

}  // namespace krait::cli
