// Where the compiler planted a check of alignment, null or array bounds into a kernel and it fails.
// (-fsanitize=... without its run-time library, which would end the process.)
#include <cstdint>
#include <string>

#include "block.h"

namespace {

// Laid out as GCC and Clang pass them.
struct SourceLocation {
  const char* file;
  std::uint32_t line;
  std::uint32_t column;
};
struct TypeDescriptor {
  std::uint16_t kind;
  std::uint16_t info;
  char name[1];
};
struct TypeMismatch {
  SourceLocation location;
  const TypeDescriptor* type;
  unsigned char log_alignment;
  unsigned char access;
};
struct OutOfBounds {
  SourceLocation location;
  const TypeDescriptor* array;
  const TypeDescriptor* index;
};

[[noreturn]] void fail(const SourceLocation& at, const std::string& what) {
  dlv3p::emulator::fail(std::string(at.file) + ":" + std::to_string(at.line) + ": " + what);
}

}  // namespace

extern "C" {

[[noreturn]] void __ubsan_handle_type_mismatch_v1_abort(TypeMismatch* data,
                                                        std::uintptr_t address) {
  const std::string type = data->type->name;
  if (address == 0) fail(data->location, "null pointer to " + type);
  fail(data->location, "misaligned address for " + type + ", which needs " +
                           std::to_string(1u << data->log_alignment) + " bytes");
}

[[noreturn]] void __ubsan_handle_out_of_bounds_abort(OutOfBounds* data, std::uintptr_t index) {
  fail(data->location, "index " + std::to_string(static_cast<std::intptr_t>(index)) +
                           " out of bounds of " + data->array->name);
}

}  // extern "C"
