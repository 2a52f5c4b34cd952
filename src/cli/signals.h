// SIGINT, SIGTERM and SIGHUP (unless it is ignored, as nohup wants it) set interrupted(); a second one ends the
// program with 130. Call once at start.
#pragma once

namespace krait::cli {

void install_signal_handlers();

}  // namespace krait::cli
