#include "symbols.h"

#include <dlfcn.h>

#include <cstring>
#include <stdexcept>

#include "block.h"

namespace dlv3p::emulator {
namespace {

Symbols known;

unsigned char* module_start() {
  static unsigned char* const start = [] {
    Dl_info info{};
    if (!dladdr(reinterpret_cast<const void*>(&set_symbols), &info)) {
      throw std::runtime_error("the emulator does not find where it is loaded");
    }
    return static_cast<unsigned char*>(info.dli_fbase);
  }();
  return start;
}

}  // namespace

void set_symbols(Symbols symbols) { known = std::move(symbols); }

std::string kernel_name(const void* kernel) {
  const auto offset = static_cast<const unsigned char*>(kernel) - module_start();
  const auto found = known.functions.find(static_cast<std::uint64_t>(offset));
  return found == known.functions.end() ? "unknown kernel" : found->second;
}

void poison_static_shared() {
  for (const auto& [offset, bytes] : known.shared) {
    std::memset(module_start() + offset, kPoisonByte, bytes);
  }
}

bool is_static_shared(const void* address, std::size_t bytes) {
  const auto begin =
      static_cast<std::uint64_t>(static_cast<const unsigned char*>(address) - module_start());
  for (const auto& [offset, size] : known.shared) {
    if (begin >= offset && begin + bytes <= offset + size) return true;
  }
  return false;
}

}  // namespace dlv3p::emulator
