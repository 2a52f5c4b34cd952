// SIGINT and SIGTERM set interrupted(); a second one ends the program with 130. Call once at start.
#pragma once

namespace krait::cli {

void install_signal_handlers();

}  // namespace krait::cli
