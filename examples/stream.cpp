// Stream a file of any length through a model in constant memory: stream MODEL FILE prints how well the
// model predicts it, and fails if memory grew on the way.
#include <krait/krait.h>
#include <sys/resource.h>

#include <cstdio>
#include <fstream>

static long peak_kilobytes() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const krait::LoadedModel loaded = krait::load_model(argv[1], {});
  krait::Likelihood likelihood(*loaded.model, loaded.dtype);
  std::ifstream file(argv[2], std::ios::binary);
  if (!file) {
    std::fprintf(stderr, "cannot open %s\n", argv[2]);
    return 1;
  }
  std::vector<char> piece(4096);
  long peak = 0;
  likelihood.begin();
  while (file.read(piece.data(), static_cast<std::streamsize>(piece.size())), file.gcount() > 0) {
    std::vector<int32_t> tokens;
    for (std::streamsize i = 0; i < file.gcount(); ++i)
      tokens.push_back(static_cast<unsigned char>(piece[static_cast<size_t>(i)]));
    likelihood.add(tokens);  // the state goes on from piece to piece
    if (peak == 0) peak = peak_kilobytes();
  }
  likelihood.end();
  likelihood.finish();
  const long grown = peak_kilobytes() - peak;
  std::printf("%lld bytes, %.3f nats each; memory grew by %ld KiB after the first 4 KiB\n",
              static_cast<long long>(likelihood.tokens()),
              likelihood.total() / static_cast<double>(likelihood.predicted()), grown);
  return grown < 4096 ? 0 : 1;
}
