// What only the symbol table of the module tells: names of kernels, places of static shared memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace dlv3p::emulator {

// Offsets in the module; build.py reads them from its symbol table.
struct Symbols {
  std::map<std::uint64_t, std::string> functions;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> shared;  // offset and bytes
};

void set_symbols(Symbols symbols);

std::string kernel_name(const void* kernel);

// Static shared memory; that of all kernels, as nothing tells whose it is.
void poison_static_shared();
bool is_static_shared(const void* address, std::size_t bytes);

}  // namespace dlv3p::emulator
